package driver

import (
	"os/exec"
	"testing"
	"time"

	"github.com/hashicorp/nomad/nomad/structs"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/e2e/host/hosttest"
)

// withoutNetworkd is as a host whose systemd-networkd was never enabled. D-Bus still knows
// the name of the service then.
func withoutNetworkd(t *testing.T) {
	hosttest.Require(t)
	systemctl := func(args ...string) {
		out, err := exec.Command("systemctl", args...).CombinedOutput()
		must.NoError(t, err, must.Sprint(string(out)))
	}
	systemctl("disable", "--now", "systemd-networkd.service", "systemd-networkd.socket")
	t.Cleanup(func() { systemctl("enable", "--now", "systemd-networkd.service", "systemd-networkd.socket") })
}

func fingerprintOf(t *testing.T, d drivers.DriverPlugin) *drivers.Fingerprint {
	fingerprints, err := d.Fingerprint(t.Context())
	must.NoError(t, err)
	return <-fingerprints
}

// A zone has no addresses without systemd-networkd, which is told at once and not when
// nobody has answered for a while.
func TestHostWithoutNetworkd(t *testing.T) {
	harness := newHarness(t, "")
	const attribute = "driver.nspawn.networkd"
	networkd, _ := fingerprintOf(t, harness).Attributes[attribute].GetBool()
	must.True(t, networkd)
	withoutNetworkd(t)
	networkd, _ = fingerprintOf(t, harness).Attributes[attribute].GetBool()
	must.False(t, networkd)

	task := newTask(t, harness, "image = \""+hosttest.Busybox+"\"\ncommand = \"/bin/true\"\nnetwork_zone = \"lab\"")
	begun := time.Now()
	_, _, err := harness.StartTask(task)
	must.ErrorContains(t, err, "network_zone: systemd-networkd does not run on this client")
	must.ErrorContains(t, err, "systemctl enable --now systemd-networkd")
	must.True(t, structs.IsRecoverable(err))
	must.Less(t, 3*time.Second, time.Since(begun))

	veth := newTask(t, harness, "image = \""+hosttest.Busybox+"\"\ncommand = \"/bin/true\"")
	startTask(t, harness, veth)
	must.Zero(t, waitTask(t, harness, veth).ExitCode)
}

// A guest can do without its network, so that it is started and its user is told.
func TestHostGuestWithoutNetworkd(t *testing.T) {
	withoutNetworkd(t)
	harness := newHarness(t, "")
	events, err := harness.TaskEvents(t.Context())
	must.NoError(t, err)
	task := newTask(t, harness, "image = \""+hosttest.Debian+"\"\nboot = true")
	startTask(t, harness, task)
	for event := range events {
		if event.TaskID == task.ID && event.Message != "Machine is ready" {
			must.StrContains(t, event.Message, "systemd-networkd does not run on this client")
			break
		}
	}
	must.NoError(t, harness.StopTask(task.ID, time.Minute, ""))
}
