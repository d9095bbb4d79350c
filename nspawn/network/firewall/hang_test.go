package firewall

import (
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

// TestBusHangs asks for firewalld by a bus that takes the connection and never answers.
// Whoever opens the firewalls holds a lock, so that all starts would wait for ever.
func TestBusHangs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bus")
	listener, err := net.Listen("unix", path)
	must.NoError(t, err)
	defer listener.Close()
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+path)
	ended := make(chan error, 1)
	go func() { ended <- eachLink(t.Context(), nil, nil) }()
	select {
	case <-ended: // that there is no firewalld, or that the bus does not answer
	case <-time.After(time.Minute):
		t.Fatal("hangs")
	}
}
