"""Variables called ``TTS_*`` that are no settings -> what the operator is told of them."""

import difflib
import re
from collections.abc import Iterator, Mapping

from qwen3_jax.messages import shorten
from server.ops.address import SERVICE_LINK
from server.settings import Settings

_GONE = {  # settings of earlier versions, and what has taken their place
    "TTS_MAX_CHUNKS": "it is TTS_MAX_BUFFER_MS now, in milliseconds",
    "TTS_MAX_INBOUND": "32 messages wait at a socket",
    "TTS_MAX_UNAUTHORIZED": "two fifths of TTS_MAX_SESSIONS, at least 40, wait for a token",
    "TTS_START_TIMEOUT": "start or speak has to come within 60 s",
}
_KUBERNETES = re.compile(r"TTS_(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
_PORT = re.compile(r"TTS_(\w+_)?PORT")
_SECRET = re.compile(r"KEY|SECRET|TOKEN|PASS|JWT|AUTH|CRED")


def odd_variables(environment: Mapping[str, str]) -> Iterator[str]:
    """A line for each variable that is no setting, and one for all that Kubernetes sets for Services of that name."""
    known = {f"TTS_{name.upper()}" for name in Settings.model_fields}
    links = []
    for variable, value in sorted(environment.items()):
        name = variable.upper()  # settings are found whatever their case
        if not name.startswith("TTS_") or not value:
            continue
        if (name not in known and _KUBERNETES.fullmatch(name)) or (_PORT.fullmatch(name) and SERVICE_LINK.match(value)):
            links.append(name)
        elif name not in known:
            given = variable if _SECRET.search(name) else f"{variable}={shorten(value)}"
            if name in _GONE:
                yield f"{given}: no setting any more; {_GONE[name]}; unset it"
                continue
            nearest = difflib.get_close_matches(name, known, 1)
            advice = f"did you mean {nearest[0]}?" if nearest else "python -m server --help lists all"
            yield f"{given}: no such setting; {advice}"
    if links:
        yield (
            f"{shorten(', '.join(links))}: a Kubernetes Service whose name begins with tts has set what is no setting; it is ignored; "
            "enableServiceLinks: false in the pod's spec keeps it away"
        )
