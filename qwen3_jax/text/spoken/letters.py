"""Words in capitals, and letters read by name: FBI -> "eff bee eye", NASA -> "nasa", STOP -> "stop", getUserName -> "get User Name".

A word in capitals is read as a word if English could have it. What that rule gets wrong stands in lists.
Names of letters are written out because the voice knows words, not letters.
"""

import re

_NAMES = {
    "a": "ay", "b": "bee", "c": "see", "d": "dee", "e": "ee", "f": "eff", "g": "jee", "h": "aitch", "i": "eye", "j": "jay", "k": "kay",
    "l": "ell", "m": "em", "n": "en", "o": "oh", "p": "pee", "q": "cue", "r": "are", "s": "ess", "t": "tee", "u": "you", "v": "vee",
    "w": "double you", "x": "ex", "y": "why", "z": "zee", "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon",
    "ζ": "zeta", "η": "eta", "θ": "theta", "ι": "iota", "κ": "kappa", "λ": "lambda", "μ": "mu", "ν": "nu", "ξ": "xi", "π": "pi",
    "ρ": "rho", "σ": "sigma", "τ": "tau", "υ": "upsilon", "φ": "phi", "χ": "chi", "ψ": "psi", "ω": "omega",
}  # fmt: skip
_SAID = {
    "OK": "okay", "BBQ": "barbecue", "CMOS": "see moss", "Gmail": "jee mail", "IEEE": "eye triple ee", "JPEG": "jay peg", "JSON": "jason",
    "LaTeX": "lay tech", "MPEG": "em peg", "NAACP": "en double ay see pee", "NOAA": "noah", "OLED": "oh led", "SQL": "sequel",
    "SaaS": "sass", "WiFi": "wi-fi", "YAML": "yammel", "eBay": "ee bay", "iOS": "eye oh ess", "IOS": "eye oh ess", "macOS": "mac oh ess",
    "BSc": "bee ess see", "MSc": "em ess see", "PhD": "pee aitch dee", "PhDs": "pee aitch dees", "GmbH": "jee em bee aitch",
    "IoT": "eye oh tee", "MHz": "megahertz", "GHz": "gigahertz", "kHz": "kilohertz", "Hz": "hertz", "dB": "decibels", "e-mail": "email",
    "E-mail": "Email", "Mr": "Mister", "MR": "mister", "Mrs": "Missus", "MRS": "missus", "DR": "doctor", "Dr": "Doctor", "St": "Saint",
    "WW": "World War", "WWI": "World War one", "WWII": "World War two", "vs": "versus", "aka": "also known as", "IPv": "eye pee vee",
    "km": "kilometers", "kg": "kilograms", "cm": "centimeters", "lb": "pounds", "lbs": "pounds", "hrs": "hours", "ft": "feet",
    "mph": "miles per hour", "tbsp": "tablespoon", "tsp": "teaspoon",
}  # fmt: skip
# They look like words and are read letter by letter.
_SPELLED = frozenset(
    "aarp aclu afaik asap cod diy dob dod doj esp faq ged gop hiv hov iaea iirc imei imho led mit nih nyc pov raf roi sap sec seiu sos "
    "suv tos ucla usaa usaf usda usps uspto vip vod wip".split()
)  # fmt: skip
# Words of two or three letters of a form that initialisms have.
_WORDS = frozenset(
    "ah am an as at be by do eh go ha he hi ho if in is la lo me my no of oh on or ox pa so to uh um up we ye yo ace act add age ago aid "
    "aim air all and ant any ape app apt arc are ark arm art ash ask ate awe axe bee boo bra bro buy bye coo cry cue die doe dry due ear "
    "eat eel egg ego elf elk elm end era eve eye fee flu fly foe fry goo guy ice icy ill imp ink inn ion its ivy lie moo oak oar oat odd "
    "off oil old one opt ore our out owe owl own pea pee pie ply pry roe rue rye sea see she shh shy sky sly spa spy sue tea tee the tie "
    "toe too try two use via why woe woo you zoo".split()
)  # fmt: skip
AMBIGUOUS = frozenset({"IT", "US", "WHO"})  # letters, but words between other words in capitals
_SOUNDS = frozenset("brr grr hm hmm mm mmm nth pfft psst pst sh shh th tsk zzz".split())  # words without a vowel
_ONSETS = frozenset(
    "b bl br c ch chr cl cr d dr dw f fl fr g gh gl gn gr h j k kl kn kr l m n p ph phr pl pr ps qu r rh s sc sch scr sh shr sk sl sm sn "
    "sp sph spl spr squ st str sv sw t th thr thw tr ts tw v w wh wr x y z".split()
)  # fmt: skip
_CODAS = frozenset(
    "b bb bs c ch ck cks ct cts d dd dds dge ds dth f ff ffs fs ft fts g gg gh ghs ght ghts gn gns gs h hs j k ks l lb lbs ld lds lf "
    "lfth lk lks ll lls lm lms lp lps ls lt lts lth lv m mb mbs mn mp mps mpt mpts ms n nc nch nct nd nds ng ngs ngth ngths nk nks nn ns "
    "nt nth nths nts p ph phs pp ps pt pts q r rb rbs rc rch rd rds rf rfs rg rk rks rl rld rlds rls rm rms rmth rn rns rp rps rr rs rsh "
    "rst rt rth rths rts rv s sc sch sh sk sks sm sms sp sps ss st sts t tch th ths ts tt tz v w wd wk wks wl wls wn wns ws x xt xts y "
    "ys z zz".split()
)  # fmt: skip
_PARTS = re.compile(r"[A-Z]+s?(?![a-z])|[A-Z]?[a-z]+|[^A-Za-z]+|[A-Z]+")
_AFTER_I = frozenset({"m", "ll", "d", "ve"})
_ENDINGS = frozenset({"S", "T", "RE", "VE", "LL", "D", "M"})  # after an apostrophe


def read(word: str, *, shouted: bool = False) -> str:
    """A word, perhaps with hyphens and apostrophes, as it is said; ``shouted``: its neighbours are words in capitals."""
    if word in _SAID:
        return _SAID[word]
    if "-" in word:
        parts = [read(part, shouted=shouted) if part else "" for part in word.split("-")]
        return ("-" if not any(" " in part for part in parts) else " ").join(parts)
    head, apostrophe, tail = word.partition("'")
    if not apostrophe:
        return _word(word, shouted)
    if head == "i" and tail in _AFTER_I:
        return f"I'{tail}"
    if head.isupper() and head.endswith("N") and tail == "T":
        return f"{head.lower()}'t"
    if head.isupper() and (tail == "s" or tail in _ENDINGS):
        return f"{head if head == 'I' else _word(head, tail != 's' and head in AMBIGUOUS)}'{tail.lower()}"
    if word.isupper() and len(word) > 2:
        return word.capitalize()
    return f"{_word(head, shouted)}'{tail}" if head.isupper() and len(head) > 1 else word


def spell(letters: str) -> str:
    """The names of letters."""
    return " ".join(_NAMES.get(letter, letter) for letter in letters.lower())


def is_loud(word: str) -> bool:
    """A word in capitals that is no initialism: its neighbours are words too."""
    return len(word) > 1 and word.isupper() and word.isalpha() and word not in AMBIGUOUS and _is_word(word.lower())


def _word(word: str, shouted: bool) -> str:
    if word in _SAID:
        return _SAID[word]
    if len(word) == 1:
        return word if word in "aAI" else "I" if word == "i" else _NAMES.get(word.lower(), word)
    if not word.isascii():
        return word.capitalize() if word.isupper() else word
    if word.islower() or word.istitle():
        return word if _has_vowel(word) or word.istitle() or word in _SOUNDS or len(word) > 5 else spell(word)
    if word.isupper():
        return word.lower() if (shouted if word in AMBIGUOUS else _is_word(word.lower())) else spell(word)
    if word[:-1].isupper() and word.endswith("s"):
        return f"{word[:-1].lower() if _is_word(word[:-1].lower()) else spell(word[:-1])}s"
    parts = _PARTS.findall(word)
    if parts[0] in ("Mc", "Mac", "De", "Di", "La", "Le", "Du", "Van", "Fitz"):
        return word  # a name
    return " ".join(_word(part, shouted) for part in parts)


def _has_vowel(word: str) -> bool:
    return any(letter in "aeiouyAEIOUY" for letter in word)


def _is_word(word: str) -> bool:
    """English could have it (lower case)."""
    if word in _WORDS:
        return True
    if word in _SPELLED or len(word) < 3:
        return False
    shape = "".join("v" if letter in "aeiou" or (letter == "y" and at) else "c" for at, letter in enumerate(word))
    shape = "cc" + shape[2:] if word.startswith("qu") else shape
    if len(word) == 3:
        return shape == "cvc" or (shape == "cvv" and word[2] == "y" and word[1] in "aeou")
    if "v" not in shape or "ccccc" in shape or "vvvv" in shape or word[:2] in ("aa", "ii", "uu"):
        return False
    onset, coda = word[: shape.index("v")], word[shape.rindex("v") + 1 :]
    return (not onset or onset in _ONSETS) and (not coda or coda in _CODAS)
