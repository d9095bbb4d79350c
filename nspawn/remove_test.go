package nspawn

import (
	"testing"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/network"
)

func TestForwards(t *testing.T) {
	spec := Spec{Machine: "m", Command: []string{"x", "--port=tcp:1:1"}, Network: Network{Veth: true, Ports: []Port{{Host: 8080, Container: 80}}}}
	want := []network.Forward{{Protocol: "tcp", HostPort: 8080}, {Protocol: "udp", HostPort: 8080}}
	must.Eq(t, want, forwards(machine.Argv(spec, machine.Host{})))
}
