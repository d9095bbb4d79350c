package driver

import (
	"net"
	"testing"

	"github.com/hashicorp/nomad/nomad/structs"
	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/e2e/host/hosttest"
)

// TestHostPortInUse checks that a port on which the host listens is not taken away, and
// that Nomad may try again when it is free.
func TestHostPortInUse(t *testing.T) {
	harness := newHarness(t, "")
	listener, err := net.Listen("tcp", "127.0.0.1:18082")
	must.NoError(t, err)
	task := newTask(t, harness, "image = \""+hosttest.Busybox+"\"\ncommand = \"/bin/true\"\nports = [\"http\"]")
	task.Resources.Ports = &structs.AllocatedPorts{{Label: "http", Value: 18082, To: 80}}
	_, _, err = harness.StartTask(task)
	must.ErrorContains(t, err, "ports: reserve port 18082 of the host: another program uses it for TCP")
	must.True(t, structs.IsRecoverable(err))
	must.NoError(t, listener.Close())
	startTask(t, harness, task)
	must.Zero(t, waitTask(t, harness, task).ExitCode)
}
