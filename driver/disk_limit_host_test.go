package driver

import (
	"os"
	"testing"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/nspawn/machine"
)

func TestHostDiskInMemory(t *testing.T) {
	harness := newHarness(t, "allow_privileged = true")
	for _, options := range []string{"", "user_namespacing = false\n"} {
		task := newTask(t, harness, options+"disk {\n size = \"8MiB\"\n in_memory = true\n}\n"+script(`
			df -k / | tail -n 1 | tr -s ' ' | cut -d ' ' -f 2
			dd if=/dev/zero of=/big bs=64k count=1000 2>&1 | grep -o 'No space left'
			rm /big
			mkdir -p /srv/deep; mv /etc/passwd /srv; chown 1000:1001 /srv/passwd
			stat -c %u:%g / /srv /srv/passwd /etc/group
			dd if=/dev/zero of=/fits bs=64k count=16 2>/dev/null && echo fits`))
		startTask(t, harness, task)
		must.Zero(t, waitTask(t, harness, task).ExitCode)
		_, err := os.Stat("/var/lib/nomad-driver-nspawn/machines/" + machine.Name(task.AllocID, task.Name))
		must.ErrorIs(t, err, os.ErrNotExist)
		must.NoError(t, harness.DestroyTask(task.ID, false))
		awaitLog(t, task, "stdout", "8192\nNo space left\n0:0\n0:0\n1000:1001\n0:0\nfits\n")
	}
}
