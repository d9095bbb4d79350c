package nspawn

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/e2e/escape"
	"nomad-driver-nspawn/nspawn/guard"
	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/mounts"
	"nomad-driver-nspawn/nspawn/programs"
)

// In TestHostAttackDetachedMounts a container detaches the mounts on the directory that
// its allocation shares, and replaces a directory that the host's root follows by a link.
// Nomad changes mode and owner of the directory when an agent starts.
func TestHostAttackDetachedMounts(t *testing.T) {
	m := newManager(t)
	found, err := programs.Find(t.Context(), m.bus, m.dirs.Pins())
	must.NoError(t, err)
	// An older nspawn leaves the stage, with the same mounts, below the machine's root.
	isReal := found.Version >= 257
	for _, mode := range []machine.Mode{machine.ProcessOne, machine.ProcessTwo} {
		for _, name := range []string{"data", "tmp", "logs"} {
			for _, kept := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s %s kept %t", mode, name, kept), func(t *testing.T) {
					script := "chown 0 /alloc/" + name + "; touch /alloc/real; " +
						escape.Detached("/alloc", "/bin/busybox mv "+name+" gone && /bin/busybox ln -s /etc "+name)
					spec := newMachine(t, m, script)
					spec.Mode = mode
					spec.Untrusted, spec.Binds = newAllocation(t)
					if !kept {
						for i := range spec.Binds {
							spec.Binds[i].Keep = ""
						}
					}
					out := mustStart(t, m, spec)
					exit := mustWait(t, m, spec.Machine)
					must.NoError(t, m.Remove(t.Context(), spec.Machine))
					link, err := os.Readlink(spec.Untrusted + "/alloc/" + name)
					switch {
					case !kept && !isReal:
						must.StrContains(t, <-out.stderr, "Device or resource busy")
						return
					case !kept:
						must.Eq(t, Exit{}, exit, must.Sprint(<-out.stderr))
						must.Eq(t, "/etc", link)
						return
					}
					must.Error(t, err)
					must.StrContains(t, <-out.stderr, "can't rename '"+name+"': Value too large for")
					must.SliceContains(t, namesIn(t, spec.Untrusted+"/alloc"), "real")
				})
			}
		}
	}
}

// TestHostSharedDirectory checks that tasks find everything else that they share with the
// same owners as before.
func TestHostSharedDirectory(t *testing.T) {
	m := newManager(t)
	alloc, binds := newAllocation(t)
	run := func(script string) string {
		spec := newMachine(t, m, script)
		spec.Untrusted, spec.Binds = alloc, binds
		out := mustStart(t, m, spec)
		exit := mustWait(t, m, spec.Machine)
		must.NoError(t, m.Remove(t.Context(), spec.Machine))
		must.Eq(t, Exit{}, exit, must.Sprint(<-out.stderr))
		return <-out.stdout
	}
	run(`cd /alloc && umask 0 && mkdir d && touch d/f f data/f tmp/f && chown 1000:65534 d f data/f && chmod 4755 f &&
		chown 1000 data && chmod 700 tmp`)
	out := run(`cd /alloc && stat -c '%n %u:%g %a' . d d/f f data data/f tmp && mv f g && mv d e && rm -r e g data/f tmp/f && ls`)
	must.Eq(t, ". 0:0 777\nd 1000:65534 777\nd/f 0:0 666\nf 1000:65534 4755\ndata 1000:0 777\ndata/f 1000:65534 666\ntmp 0:0 700\ndata\nlogs\ntmp\n", out)
	// When an agent starts, it gives the directory to nobody. Afterwards running machines
	// can write there again.
	spec := newMachine(t, m, "while :; do sleep 1000; done")
	spec.Untrusted, spec.Binds = alloc, binds
	mustStart(t, m, spec)
	must.NoError(t, os.Chown(alloc+"/alloc", 65534, 65534))
	says(t, m, spec.Machine, "! touch /alloc/again 2>/dev/null")
	must.NoError(t, guard.ProtectBind(binds[0], alloc))
	says(t, m, spec.Machine, "touch /alloc/again")
	// Files that the host creates there can be read, and belong to the host.
	must.NoError(t, os.WriteFile(alloc+"/alloc/rendered", []byte("of Nomad\n"), 0o644))
	must.Eq(t, "of Nomad\n", run("cat /alloc/rendered && ! rm /alloc/rendered 2>/dev/null"))
}

// In TestHostAttackLinksInSecrets Nomad writes tokens into a directory that a container
// can write to at any time.
func TestHostAttackLinksInSecrets(t *testing.T) {
	m := newManager(t)
	for _, fsType := range []string{"tmpfs", "plain"} {
		for _, kept := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s kept %t", fsType, kept), func(t *testing.T) {
				target := scratch(t) + "/passwd"
				must.NoError(t, os.WriteFile(target, []byte("of the host\n"), 0o600))
				alloc, binds := newAllocation(t)
				secrets := alloc + "/task/secrets"
				must.NoError(t, os.Mkdir(secrets, 0o777))
				if fsType == "tmpfs" { // as Nomad does
					must.NoError(t, unix.Mount("tmpfs", secrets, "tmpfs", unix.MS_NOEXEC, "size=1m"))
				}
				t.Cleanup(func() { // as Nomad does, once
					err := unix.Unmount(secrets, 0)
					must.True(t, err == nil || !kept && errors.Is(err, unix.EINVAL), must.Sprint(err))
					isPoint, err := mounts.IsPoint(secrets)
					must.NoError(t, err)
					must.False(t, isPoint)
				})
				must.NoError(t, os.WriteFile(secrets+"/token", []byte("old"), 0o666))
				bind := machine.Bind{Source: secrets, Destination: "/secrets", ChownFallback: true}
				if kept {
					bind.Keep = machine.KeepFromLinks
				}
				spec := newMachine(t, m, "while :; do sleep 1000; done")
				spec.Untrusted, spec.Binds = alloc, append(binds, bind)
				mustStart(t, m, spec)
				says(t, m, spec.Machine, "cd /secrets && rm token && ln -s "+target+" token && ln -s . dir && ln -s /etc/passwd etc && cat etc dir/etc && mv dir dir2")
				for _, path := range []string{"/token", "/dir2/token"} {
					err := os.WriteFile(secrets+path, []byte("token\n"), 0o666)
					if kept {
						must.ErrorIs(t, err, unix.ELOOP)
						must.FileContains(t, target, "of the host\n")
					} else { // so the attack works without the protection
						must.NoError(t, err)
						must.FileContains(t, target, "token\n")
					}
				}
				says(t, m, spec.Machine, "rm -r /secrets/*")
				must.NoError(t, os.WriteFile(secrets+"/token", []byte("new"), 0o666))
				must.Eq(t, "new", says(t, m, spec.Machine, "cat /secrets/token"))
			})
		}
	}
}

// TestHostForbidLinks checks that the directory of an allocation is mounted on itself
// once, with the mounts below it, and that it is removed when Nomad has removed what it
// knows about.
func TestHostForbidLinks(t *testing.T) {
	m := newManager(t)
	dir := scratch(t) + "/allocation"
	must.NoError(t, os.MkdirAll(dir+"/task/secrets", 0o777))
	must.NoError(t, unix.Mount("tmpfs", dir+"/task/secrets", "tmpfs", 0, "size=1m"))
	must.NoError(t, os.Symlink("/etc", dir+"/task/etc"))
	must.NoError(t, os.Symlink("/etc", dir+"/task/secrets/etc"))
	before := mountsAt(t, dir)
	for range 2 {
		must.NoError(t, m.ForbidLinks(dir))
		must.Eq(t, 1+2*before, mountsAt(t, dir)) // including the covered mount
	}
	for _, path := range []string{"/task/etc/passwd", "/task/secrets/etc/passwd"} {
		_, err := os.ReadFile(dir + path)
		must.ErrorIs(t, err, unix.ELOOP)
	}
	must.NoError(t, m.RemoveEmptied()) // not yet
	must.Eq(t, 1+2*before, mountsAt(t, dir))

	must.NoError(t, unix.Unmount(dir+"/task/secrets", 0))
	must.ErrorIs(t, os.RemoveAll(dir), unix.EBUSY)
	must.NoError(t, m.RemoveEmptied())
	must.Eq(t, 0, mountsAt(t, dir))
	_, err := os.Stat(dir)
	must.ErrorIs(t, err, os.ErrNotExist)
	must.SliceEmpty(t, namesIn(t, m.dirs.NoSymfollowAllocs()))
}

func mountsAt(t *testing.T, dir string) (count int) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	must.NoError(t, err)
	for line := range strings.Lines(string(table)) {
		if strings.HasPrefix(strings.Fields(line)[4], dir) {
			count++
		}
	}
	return count
}

// TestHostNoSymfollow checks that a shared directory is as Nomad left it when its last
// machine is gone.
func TestHostNoSymfollow(t *testing.T) {
	m := newManager(t)
	alloc, binds := newAllocation(t)
	var specs []machine.Spec
	for range 2 {
		spec := newMachine(t, m, "while :; do sleep 1000; done")
		spec.Untrusted, spec.Binds = alloc, binds
		for i := range binds {
			binds[i].NoSymfollow = i < 2
		}
		mustStart(t, m, spec)
		specs = append(specs, spec)
	}
	says(t, m, specs[0].Machine, "mkdir /local/d /alloc/data/d && ln -s /etc /local/l && ln -s /etc /alloc/data/l && cat /local/l/passwd /alloc/data/l/passwd")
	links := func() (followed []bool) {
		for _, path := range []string{"/task/local/l/passwd", "/alloc/data/l/passwd"} {
			_, err := os.ReadFile(alloc + path)
			must.True(t, err == nil || errors.Is(err, unix.ELOOP), must.Sprint(err))
			followed = append(followed, err == nil)
		}
		return followed
	}
	must.Eq(t, []bool{false, false}, links())
	must.Eq(t, 2, mountsAt(t, alloc))
	open, err := os.Create(alloc + "/alloc/logs/log") // as Nomad has it
	must.NoError(t, err)
	defer open.Close()
	must.NoError(t, m.Remove(t.Context(), specs[0].Machine))
	must.Eq(t, []bool{false, false}, links())
	must.NoError(t, m.Remove(t.Context(), specs[1].Machine))
	must.Eq(t, []bool{true, true}, links())
	must.Eq(t, 0, mountsAt(t, alloc))
	must.NoError(t, os.Rename(alloc+"/task/local", alloc+"/task/moved"))
	must.NoError(t, os.Rename(alloc+"/task/moved", alloc+"/task/local"))
}
