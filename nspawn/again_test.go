package nspawn

import (
	"context"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/nspawn/dirs"
	"nomad-driver-nspawn/nspawn/gate"
	"nomad-driver-nspawn/nspawn/gate/inside"
)

// newGate makes the gate of a machine that is nothing else.
func newGate(t *testing.T) (f *Follower, socket string) {
	d := dirs.Dirs{Run: t.TempDir(), State: t.TempDir()}
	const name = "web"
	must.NoError(t, gate.Make(d.Gate(name)))
	f = &Follower{manager: NewManager(nil, d, nil), machine: name, held: make(chan error)}
	return f, filepath.Join(d.Gate(name), inside.Socket)
}

// A beginAgain that has been ended, but gets to run only after that, leaves the gate to
// the one that is there now: the shim knocks at the socket that came last.
func TestBeginAgainTooLate(t *testing.T) {
	f, socket := newGate(t)
	g, err := gate.Listen(filepath.Dir(socket))
	must.NoError(t, err)
	defer g.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	f.manager.beginAgain(ctx, f.machine, f.mode, f.begin, func(error) {})
	shim, err := net.Dial("unix", socket)
	must.NoError(t, err)
	must.NoError(t, shim.Close())
}

// A guest may reboot again at once, as one that was being restarted when its plugin came.
// Somebody listens at the gate all the same.
func TestBeginAgainAndAgain(t *testing.T) {
	for n := range 100 {
		f, socket := newGate(t)
		f.beginAgain(t.Context())
		f.beginAgain(t.Context())
		var err error
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			var shim net.Conn
			if shim, err = net.Dial("unix", socket); err == nil {
				must.NoError(t, shim.Close())
				break
			}
			if time.Now().After(end) {
				break
			}
		}
		must.NoError(t, err, must.Sprint("try ", n))
		f.Close()
		_, err = net.Dial("unix", socket)
		must.Error(t, err, must.Sprint("nobody listens any more"))
	}
}
