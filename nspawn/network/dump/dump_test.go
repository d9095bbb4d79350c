package dump

import (
	"errors"
	"testing"

	"github.com/shoenig/test/must"
	"github.com/vishvananda/netlink"
)

func TestComplete(t *testing.T) {
	broken := errors.New("broken")
	for _, c := range []struct {
		changes int // how often the list changes while it is read
		err     error
		want    error
	}{
		{changes: 0},
		{changes: 3},
		{changes: 3, err: broken, want: broken},
		{changes: 2 * attempts, want: netlink.ErrDumpInterrupted},
	} {
		reads := 0
		entries, err := Complete(func() (int, error) {
			if reads++; reads <= c.changes {
				return 0, netlink.ErrDumpInterrupted
			}
			return 7, c.err
		})
		must.ErrorIs(t, err, c.want)
		must.Eq(t, min(c.changes+1, attempts), reads)
		must.Eq(t, c.changes < attempts, entries == 7)
	}
}
