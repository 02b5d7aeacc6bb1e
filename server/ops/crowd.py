"""Bounds on those who have not said who they are: how many there may be, and how much each may send in a second."""

import ipaddress
from collections import Counter
from collections.abc import Callable
from time import monotonic

from server.ops.address import is_loopback

SHARE = 0.25  # of all places, for the guests of one address
LOOPBACK_SHARE = 0.75  # the same for this machine: a proxy, or all of its users, come from there


class NoPlace(Exception):
    """There is no place, and nobody who would have to make room."""


class TokenBucket:
    """So many at once, and ``per_second`` more as time goes on."""

    def __init__(self, most: float, per_second: float, clock: Callable[[], float] = monotonic) -> None:
        self._most, self._per_second, self._clock = most, per_second, clock
        self._left, self._seen = float(most), clock()

    def take(self, amount: float = 1.0) -> bool:
        """Take that many; False, and nothing taken, if there are fewer."""
        now = self._clock()
        self._left = min(self._most, self._left + (now - self._seen) * self._per_second)
        self._seen = now
        if amount > self._left:
            return False
        self._left -= amount
        return True


class Guest:
    """One place of a Crowd. A stranger's may be taken away; that of a guest who is known may not."""

    def __init__(self, crowd: "Crowd", network: str, leave: Callable[[], None]) -> None:
        self.leave, self._crowd, self._network = leave, crowd, network

    def known(self) -> None:
        """The guest has said who it is."""
        self._crowd.move(self, self._network, known=True)

    def stranger(self) -> None:
        """The guest begins anew."""
        self._crowd.move(self, self._network, known=False)

    def gone(self) -> None:
        """The guest has left, or was made to."""
        self._crowd.remove(self, self._network)


class Crowd:
    """Places by address. Where none is left, a newcomer gets that of the stranger who has waited longest, of the address that has most.

    So nobody who opens many connections and says nothing can keep others out: the more there are of an address, the sooner they go.

    Args:
        most: places in all.
        behind_proxy: all addresses are the proxy's own, so that none of them has a share.
    """

    def __init__(self, most: int, *, behind_proxy: bool = False) -> None:
        self.most, self._behind_proxy = most, behind_proxy
        self._strangers: dict[str, dict[Guest, None]] = {}  # by address, those who have waited longest first
        self._known: set[Guest] = set()
        self._of: Counter[str] = Counter()  # guests by address, those who are known included

    def __len__(self) -> int:
        return self._of.total()

    def enter(self, address: str, leave: Callable[[], None]) -> Guest:
        """Take a place.

        Args:
            leave: called when the place is given to somebody else.

        Raises:
            NoPlace: all places, or all of that address, are held by guests who are known.
        """
        network = network_of(address)
        if len(self) >= self.most:
            self._displace(max(self._strangers, key=lambda one: len(self._strangers[one]), default=network))
        elif self._of[network] >= self.share(network):
            self._displace(network)
        guest = Guest(self, network, leave)
        self._of[network] += 1
        self._strangers.setdefault(network, {})[guest] = None
        return guest

    def share(self, address: str) -> int:
        """Places that one address may hold."""
        if self._behind_proxy:
            return self.most
        return max(1, int(self.most * (LOOPBACK_SHARE if is_loopback(address) else SHARE)))

    def move(self, guest: Guest, network: str, *, known: bool) -> None:
        """Make a guest known, or a stranger; one that has gone stays gone."""
        if known and self._forget(guest, network):
            self._known.add(guest)
        elif not known and guest in self._known:
            self._known.discard(guest)
            self._strangers.setdefault(network, {})[guest] = None

    def remove(self, guest: Guest, network: str) -> None:
        """Give a place back; a second time does nothing."""
        if self._forget(guest, network) or guest in self._known:
            self._known.discard(guest)
            self._of[network] -= 1
            if not self._of[network]:
                del self._of[network]

    def _forget(self, guest: Guest, network: str) -> bool:
        there = self._strangers.get(network, {})
        if guest not in there:
            return False
        del there[guest]
        if not there:
            del self._strangers[network]
        return True

    def _displace(self, network: str) -> None:
        there = self._strangers.get(network)
        if not there:
            raise NoPlace
        guest = next(iter(there))
        guest.gone()
        guest.leave()


def network_of(address: str) -> str:
    """What one user has: an IPv4 address, or the first 64 bits of an IPv6 address."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:  # a Unix socket, or what a proxy has made up
        return address
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return address if found.is_loopback else str(ipaddress.ip_network((found, 64), strict=False).network_address)
    return str(found)
