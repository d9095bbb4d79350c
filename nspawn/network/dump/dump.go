// Package dump reads lists from the kernel by netlink: links, addresses, routes and
// connections.
package dump

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// attempts is how often a list is read at most. A list is read in a tenth of a
// millisecond, and hardly ever changes twice in a row in that time.
const attempts = 200

// Complete calls list, and calls it again if the list has changed while it was read: the
// kernel then says that entries may be missing. Whoever starts or removes another machine
// changes the lists of links, addresses and routes.
func Complete[T any](list func() (T, error)) (entries T, err error) {
	for range attempts {
		entries, err = list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return entries, err
}
