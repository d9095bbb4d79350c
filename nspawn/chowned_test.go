package nspawn

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/e2e/host/hosttest"
	"nomad-driver-nspawn/nspawn/machine"
)

// newOwnedImage returns a copy of the busybox image below dir with files of several
// owners, one with setuid, and one with a capability.
func newOwnedImage(t *testing.T, dir string) string {
	hosttest.Require(t)
	image := filepath.Join(dir, "owned-image")
	t.Cleanup(func() { must.NoError(t, os.RemoveAll(image)) })
	out, err := exec.Command("sh", "-ec", `cp -a `+hosttest.Busybox+` `+image+`; cd `+image+`; mkdir -p opt srv/www
		cp bin/busybox opt/cat; cp bin/busybox opt/setuid; chmod 4755 opt/setuid
		echo page >srv/www/page; chown -R 33:33 srv/www
		echo www:x:33:33::/:/bin/sh >>etc/passwd`).CombinedOutput()
	must.NoError(t, err, must.Sprint(string(out)))
	const capNetRaw = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" // as setcap writes it
	must.NoError(t, unix.Setxattr(image+"/opt/cat", "security.capability", []byte(capNetRaw), 0))
	return image
}

// listing returns everything that an image contains, as text.
func listing(t *testing.T, image string) string {
	out, err := exec.Command("find", image, "-printf", `%P %M %U:%G %s %T@ %l\n`).CombinedOutput()
	must.NoError(t, err)
	return string(out)
}

// TestHostChownedRoot checks that a root with changed owners looks to its machine like one
// with ID-mapped layers. The host's own root is an overlay, which cannot be ID-mapped.
func TestHostChownedRoot(t *testing.T) {
	m := newManager(t)
	idmapped, chowned := newOwnedImage(t, "/var/lib/machines"), newOwnedImage(t, "/root")
	before := listing(t, chowned)
	for name, c := range map[string]struct {
		change func(*machine.Spec)
		want   string
	}{
		"plain":     {func(*machine.Spec) {}, "/opt/setuid 0:0 4755\n/srv/www/page 33:33 644\n/etc/written 0:0 644\ny\nCapEff:\t0000000000002000\n"},
		"read-only": {func(s *machine.Spec) { s.Root.ReadOnly = true }, "can't create /etc/written: Read-only file system\n"},
		"state":     {func(s *machine.Spec) { s.Root.Volatile = "state" }, "can't create /etc/written: Read-only file system\n"},
	} {
		t.Run(name, func(t *testing.T) {
			spec := newMachine(t, m, `ls /etc/written
				stat -c '%n %u:%g %a' / /etc /usr /etc/hosts /mnt/bind/* /opt/setuid /srv/www/page
				(echo x >/etc/written) 2>&1 && stat -c '%n %u:%g %a' /etc/written
				(echo y >/srv/www/page) 2>&1; cat /srv/www/page
				su www -c '/opt/cat /proc/self/status | grep CapEff'`)
			spec.Root.Files = []machine.File{{Path: "/etc/hosts", Content: "127.0.0.1 localhost\n"}}
			bind := t.TempDir()
			must.NoError(t, os.WriteFile(filepath.Join(bind, "file"), nil, 0o644))
			spec.Binds = []machine.Bind{{Source: bind, Destination: "/mnt/bind"}}
			c.change(&spec)
			run := func(image string) (stdout string, notices []string) {
				spec.Root.Image = image
				out := mustStart(t, m, spec)
				must.Eq(t, Exit{}, mustWait(t, m, spec.Machine))
				must.NoError(t, m.Remove(t.Context(), spec.Machine))
				must.StrContains(t, <-out.stderr, "/etc/written: No such file")
				return <-out.stdout, out.notices
			}
			want, notices := run(idmapped)
			must.StrContains(t, want, c.want)
			must.SliceEmpty(t, notices)
			got, notices := run(chowned)
			must.Eq(t, want, got)
			must.SliceLen(t, 1, notices)
			must.StrContains(t, notices[0], "private copy of the image, which takes time for images of many files")
			must.StrContains(t, notices[0], "this kernel can not ID-map mounts of file system overlay")
		})
	}
	must.Eq(t, before, listing(t, chowned))
}

// TestHostInPlaceUnmappable checks that an image that is run in place has no such
// fallback.
func TestHostInPlaceUnmappable(t *testing.T) {
	m := newManager(t)
	spec := newMachine(t, m, "true")
	spec.Root.Image, spec.Root.InPlace = newOwnedImage(t, "/root"), true
	_, err := start(t, m, spec)
	must.ErrorContains(t, err, "in place with a user namespace: cannot be ID-mapped")
}
