package nspawn

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/e2e/host/hosttest"
	"nomad-driver-nspawn/nspawn/machine"
)

// An image has a link to a directory of the host where systemd-nspawn writes.
func TestHostAttackLinksOfImage(t *testing.T) {
	m := newManager(t)
	target := victim(t)
	for _, place := range []string{"run", "dev", "tmp", "sys", "proc", "etc", "var", "var/log", "var/log/journal", "etc/machine-id"} {
		t.Run(place, func(t *testing.T) {
			image := scratch(t) + "/image"
			must.NoError(t, exec.Command("cp", "-a", hosttest.Busybox, image).Run())
			path := filepath.Join(image, place)
			for _, link := range []string{target, strings.Repeat("../", 12) + target[1:]} {
				must.NoError(t, os.RemoveAll(path))
				must.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
				must.NoError(t, os.Symlink(link, path))
				for _, mode := range []machine.Mode{machine.ProcessOne, machine.ProcessTwo} {
					spec := newMachine(t, m, "/bin/busybox test ! -L /"+place)
					spec.Command[0] = "/bin/sh"
					spec.Mode, spec.Root.Image = mode, image
					spec.UUID, spec.LinkJournal = "c0c0c0c0-c0c0-40c0-80c0-c0c0c0c0c0c0", "try-guest"
					mustStart(t, m, spec)
					must.Eq(t, Exit{}, mustWait(t, m, spec.Machine))
					must.NoError(t, m.Remove(t.Context(), spec.Machine))
				}
				spec := newMachine(t, m, "true")
				spec.Root.Image, spec.Root.InPlace = image, true
				_, err := start(t, m, spec)
				must.ErrorContains(t, err, "/"+place+" of the image is not a ")
				must.NoError(t, m.Remove(t.Context(), spec.Machine))
			}
		})
	}
}

// An image has a link to a directory of its own, to its root, or to the link itself, where
// systemd-nspawn writes.
func TestHostLinksInImage(t *testing.T) {
	m := newManager(t)
	for link, script := range map[string]string{
		"usr/conf":    "grep -q ^app: /etc/passwd && echo x >/etc/new && test -s /usr/conf/new",
		"/usr/conf/.": "grep -q ^app: /etc/passwd",
		"/":           "test -d /etc/usr/conf && test ! -e /etc/etc/passwd",
		"etc":         "test ! -e /etc/passwd",
	} {
		t.Run(link, func(t *testing.T) {
			image := scratch(t) + "/image"
			must.NoError(t, exec.Command("cp", "-a", hosttest.Busybox, image).Run())
			must.NoError(t, os.Rename(image+"/etc", image+"/usr/conf"))
			must.NoError(t, os.Symlink(link, image+"/etc"))
			spec := newMachine(t, m, script)
			spec.Command[0] = "/bin/sh"
			spec.Root.Image = image
			mustStart(t, m, spec)
			must.Eq(t, Exit{}, mustWait(t, m, spec.Machine))
		})
	}
}

// What a link at /etc or /var leads to may have links of its own where systemd-nspawn writes.
func TestHostAttackLinksBehindLinks(t *testing.T) {
	m := newManager(t)
	image := scratch(t) + "/image"
	must.NoError(t, exec.Command("cp", "-a", hosttest.Busybox, image).Run())
	must.NoError(t, os.Rename(image+"/etc", image+"/usr/conf"))
	must.NoError(t, os.MkdirAll(image+"/usr/state", 0o755))
	for link, target := range map[string]string{
		"etc": "usr/conf", "usr/conf/machine-id": "/proc/1/environ", "var": "usr/state", "usr/state/log": "../../../../../../..",
	} {
		must.NoError(t, os.RemoveAll(image+"/"+link))
		must.NoError(t, os.Symlink(target, image+"/"+link))
	}
	spec := newMachine(t, m, "grep -q ^app: /etc/passwd && test ! -L /etc/machine-id && test ! -L /var/log && test -d /var/log")
	spec.Root.Image = image
	mustStart(t, m, spec)
	must.Eq(t, Exit{}, mustWait(t, m, spec.Machine))
}

// In TestHostAttackLinksAtReboot a guest creates such links and reboots.
func TestHostAttackLinksAtReboot(t *testing.T) {
	m := newManager(t)
	target := victim(t)
	spec := newBooted(t, m)
	spec.UUID, spec.LinkJournal = "c0c0c0c0-c0c0-40c0-80c0-c0c0c0c0c0c1", "try-guest"
	out := mustStart(t, m, spec)
	awaitEvent(t, out, Ready)
	says(t, m, spec.Machine, "mv /var/log /var/old && ln -s "+target+" /var/log && rm -f /etc/machine-id && ln -s "+
		target+"/secret /etc/machine-id && (systemctl reboot -ff >/dev/null 2>&1 &)")
	awaitEvent(t, out, Rebooted)
	awaitEvent(t, out, Ready)
	must.Eq(t, "directory", says(t, m, spec.Machine, "stat -c %F /var/log"))
}
