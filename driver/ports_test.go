package driver

import (
	"net"
	"testing"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/nspawn"
)

// A port that something listens on is refused by protocol and number, on whatever
// address it is; one that is free is still free after that.
func TestCheckPorts(t *testing.T) {
	portOf := func(address net.Addr) int {
		if tcp, ok := address.(*net.TCPAddr); ok {
			return tcp.Port
		}
		return address.(*net.UDPAddr).Port
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(t, err)
	freePort := nspawn.Port{Host: portOf(free.Addr()), Container: 80}
	must.NoError(t, free.Close())
	for range 2 {
		must.NoError(t, checkPorts(t.Context(), []nspawn.Port{freePort}))
	}
	for _, address := range []string{"127.0.0.1:0", "0.0.0.0:0", "[::1]:0", ":0"} {
		tcp, err := net.Listen("tcp", address)
		must.NoError(t, err)
		udp, err := net.ListenPacket("udp", address)
		must.NoError(t, err)
		err = checkPorts(t.Context(), []nspawn.Port{freePort, {Host: portOf(tcp.Addr())}, {Host: portOf(udp.LocalAddr())}})
		must.ErrorContains(t, err, "TCP port", must.Sprint(address))
		must.ErrorContains(t, err, "UDP port", must.Sprint(address))
		must.NoError(t, tcp.Close())
		must.NoError(t, udp.Close())
	}
}
