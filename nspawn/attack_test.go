package nspawn

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/e2e/host/hosttest"
	"nomad-driver-nspawn/nspawn/machine"
)

// The tests in this file are attacks. Each of them succeeded before machines had mount
// namespaces of their own, in which everything that they see of the host is opened once.

// victim returns a directory of the host that no machine was given, on a file system that
// can be ID-mapped. The test fails if it changes.
func victim(t *testing.T) string {
	t.Helper()
	dir := scratch(t)
	must.NoError(t, os.WriteFile(dir+"/secret", []byte("of the host\n"), 0o600))
	t.Cleanup(func() {
		must.Eq(t, []string{"secret"}, namesIn(t, dir))
		must.FileContains(t, dir+"/secret", "of the host\n")
	})
	return dir
}

// scratch returns a directory on a file system that can be ID-mapped.
func scratch(t *testing.T) string {
	t.Helper()
	hosttest.Require(t)
	dir, err := os.MkdirTemp("/var/lib/machines", "attack")
	must.NoError(t, err)
	must.NoError(t, os.Chmod(dir, 0o755))
	t.Cleanup(func() { must.NoError(t, os.RemoveAll(dir)) })
	return dir
}

// newAllocation returns the directory of an allocation, with the directories that Nomad
// makes in it, and the binds that show them.
func newAllocation(t *testing.T) (dir string, binds []machine.Bind) {
	t.Helper()
	dir = scratch(t)
	for _, name := range []string{"alloc", "alloc/data", "alloc/logs", "alloc/tmp", "task/local"} {
		must.NoError(t, os.MkdirAll(filepath.Join(dir, name), 0o755))
		must.NoError(t, os.Chmod(filepath.Join(dir, name), 0o777))
	}
	return dir, []machine.Bind{
		{Source: dir + "/alloc", Destination: "/alloc", Keep: machine.KeepEntries},
		{Source: dir + "/task/local", Destination: "/local", ChownFallback: true},
		{Source: dir + "/alloc/data", Destination: "/alloc/data"},
		{Source: dir + "/alloc/tmp", Destination: "/alloc/tmp"},
		{Source: dir + "/alloc/logs", Destination: "/alloc/logs", ReadOnly: true, Keep: machine.KeepAll},
	}
}

// In TestHostAttackRebootFollowsNothing a guest replaces the source of a bind by a link to
// a directory of the host, and reboots.
func TestHostAttackRebootFollowsNothing(t *testing.T) {
	m := newManager(t)
	target := victim(t)
	spec := newBooted(t, m)
	spec.Untrusted, spec.Binds = newAllocation(t)
	local := spec.Untrusted + "/task/local"
	must.NoError(t, os.Mkdir(local+"/a", 0o755))
	must.NoError(t, os.WriteFile(local+"/a/mine", nil, 0o644))
	spec.Binds = append(spec.Binds, machine.Bind{Source: local + "/a", Destination: "/a"})
	out := mustStart(t, m, spec)
	awaitEvent(t, out, Ready)
	says(t, m, spec.Machine, "cd /local && mv a old && ln -s "+target+" a && (systemctl reboot -ff >/dev/null 2>&1 &)")
	awaitEvent(t, out, Rebooted)
	awaitEvent(t, out, Ready)
	must.Eq(t, target, says(t, m, spec.Machine, "readlink /local/a"))
	must.Eq(t, "mine", says(t, m, spec.Machine, "ls /a"))
	says(t, m, spec.Machine, "touch /a/more")
	must.Eq(t, []string{"mine", "more"}, namesIn(t, local+"/old")) // the old directory again
}

// In TestHostAttackExchangeAtStart another machine replaces the source of a bind, or of a
// layer, by a link while the machine starts.
func TestHostAttackExchangeAtStart(t *testing.T) {
	m := newManager(t)
	target := victim(t)
	for name, set := range map[string]func(s *machine.Spec, path string){
		"bind": func(s *machine.Spec, path string) {
			s.Binds = append(s.Binds, machine.Bind{Source: path, Destination: "/data"})
		},
		"layer": func(s *machine.Spec, path string) {
			s.Overlays = []machine.Overlay{{Lower: []machine.Layer{{Path: path}}, Destination: "/data"}}
		},
		"upper layer": func(s *machine.Spec, path string) {
			s.Overlays = []machine.Overlay{{Lower: []machine.Layer{{Path: hosttest.Busybox}}, Upper: path, Destination: "/data"}}
		},
	} {
		for _, mode := range []machine.Mode{machine.ProcessOne, machine.ProcessTwo} {
			t.Run(name+" "+string(mode), func(t *testing.T) {
				alloc, binds := newAllocation(t)
				dir := alloc + "/task/local"
				must.NoError(t, os.Mkdir(dir+"/real", 0o755))
				must.NoError(t, os.WriteFile(dir+"/real/mine", nil, 0o644))
				must.NoError(t, os.Symlink(target, dir+"/link"))
				defer exchangeForEver(dir+"/real", dir+"/link")()
				for range 8 {
					spec := newMachine(t, m, "cat /data/secret; echo x >/data/written; test -e /data/mine")
					spec.Mode, spec.Untrusted, spec.Binds = mode, alloc, slices.Clone(binds)
					set(&spec, dir+"/real")
					out, err := start(t, m, spec)
					if err != nil {
						must.StrNotContains(t, err.Error(), "ended with status", must.Sprint("nspawn refused it, not the driver"))
						continue
					}
					must.Eq(t, Exit{}, mustWait(t, m, spec.Machine))
					must.NoError(t, m.Remove(t.Context(), spec.Machine))
					must.Eq(t, "", <-out.stdout)
				}
			})
		}
	}
}

// exchangeForEver exchanges the files at two paths until stop is called.
func exchangeForEver(a, b string) (stop func()) {
	var stopped atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		for !stopped.Load() {
			_ = unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
			time.Sleep(50 * time.Microsecond)
		}
	}()
	return func() {
		stopped.Store(true)
		<-done
	}
}

// exchangeVariable makes the test binary act as a process of another container that has
// received a descriptor.
const exchangeVariable = "NSPAWN_TEST_EXCHANGE"

func exchangeMain() {
	const passed = 3
	if err := unix.Renameat2(passed, os.Getenv(exchangeVariable), passed, "evil", unix.RENAME_EXCHANGE); err != nil {
		fmt.Println(err)
	}
	os.Exit(0)
}

// In TestHostAttackForeignDescriptor another container has a descriptor of the shared
// directory. It replaces a directory inside, which is not a mount point for it.
func TestHostAttackForeignDescriptor(t *testing.T) {
	m := newManager(t)
	for _, kept := range []bool{false, true} {
		for _, name := range []string{"logs", "data", "tmp"} {
			t.Run(fmt.Sprint(name, " kept ", kept), func(t *testing.T) {
				// The machine tries to become the owner of its directory.
				spec := newMachine(t, m, "chown 0 /alloc/"+name+" && touch /alloc/"+name+"/mine; while :; do sleep 1000; done")
				spec.Untrusted, spec.Binds = newAllocation(t)
				for i := range spec.Binds {
					if !kept {
						spec.Binds[i].Keep = ""
					}
				}
				mustStart(t, m, spec)
				awaitTrap(t, m, spec)
				says(t, m, spec.Machine, "mkdir /alloc/evil")
				out := exchangeAsForeigner(t, m, spec.Machine, name)
				if kept {
					must.Eq(t, "value too large for defined data type\n", out) // EOVERFLOW: the directory has no owner there
				} else {
					must.Eq(t, "", out) // so the attack works without the protection
				}
			})
		}
	}
}

// exchangeAsForeigner exchanges alloc/TARGET of a machine and alloc/evil, in another user
// and mount namespace, and returns the error.
func exchangeAsForeigner(t *testing.T, m *Manager, name, target string) string {
	leader, err := m.leader(t.Context(), name)
	must.NoError(t, err)
	alloc, err := os.Open(fmt.Sprintf("/proc/%d/root/alloc", leader.PID))
	must.NoError(t, err)
	defer alloc.Close()
	foreign := exec.Command("/proc/self/exe")
	foreign.Env = append(os.Environ(), exchangeVariable+"="+target)
	foreign.ExtraFiles = []*os.File{alloc}
	ids := []syscall.SysProcIDMap{{HostID: 0x60000000, Size: 65536}}
	foreign.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS, UidMappings: ids, GidMappings: ids, Credential: &syscall.Credential{},
	}
	out, err := foreign.CombinedOutput()
	must.NoError(t, err, must.Sprint(string(out)))
	return string(out)
}

// TestHostAttackLogsStayReadOnly checks that a container cannot change the directories
// that Nomad follows as root, whatever the image has at their paths.
func TestHostAttackLogsStayReadOnly(t *testing.T) {
	m := newManager(t)
	const attempts = `for d in $D; do
		for what in "touch $d/logs/x" "ln -s /etc/x $d/logs/main.stdout.1" "mv $d/logs $d/old" "rmdir $d/logs" "umount $d/logs" \
			"mount -o remount,bind,rw $d/logs" "umount -l $d" "chmod 700 $d/logs" "chown 0 $d/logs" \
			"mv $d/data $d/old" "mv $d/tmp $d/old" "rmdir $d/data"; do
			$what 2>/dev/null && echo "DONE: $what"
		done
	done; touch $d/x $d/data/x $d/tmp/x && ls $d/logs`
	image := scratch(t) + "/image"
	must.NoError(t, exec.Command("cp", "-a", hosttest.Busybox, image).Run())
	must.NoError(t, os.MkdirAll(image+"/p", 0o755))
	must.NoError(t, os.Symlink("p/q", image+"/alloc"))
	must.NoError(t, os.Symlink("/L1", image+"/p/q"))
	for name, c := range map[string]struct{ image, dirs string }{
		"plain": {hosttest.Busybox, "/alloc"},
		"links": {image, "/alloc /L1 /p/q"},
	} {
		for _, mode := range []machine.Mode{machine.ProcessOne, machine.ProcessTwo} {
			t.Run(name+" "+string(mode), func(t *testing.T) {
				spec := newMachine(t, m, "D='"+c.dirs+"'; "+attempts)
				spec.Mode, spec.Root.Image = mode, c.image
				spec.Untrusted, spec.Binds = newAllocation(t)
				must.NoError(t, os.WriteFile(spec.Untrusted+"/alloc/logs/out", nil, 0o644))
				out := mustStart(t, m, spec)
				must.Eq(t, Exit{}, mustWait(t, m, spec.Machine))
				must.NoError(t, m.Remove(t.Context(), spec.Machine))
				must.Eq(t, "out\n", <-out.stdout, must.Sprint(<-out.stderr))
				must.Eq(t, []string{"out"}, namesIn(t, spec.Untrusted+"/alloc/logs"))
			})
		}
	}
}

// TestHostAttackMountsInSharedDirectories checks that neither a mount of nspawn's own nor
// one behind a link changes where other mounts land.
func TestHostAttackMountsInSharedDirectories(t *testing.T) {
	m := newManager(t)
	target := victim(t)
	for name, c := range map[string]struct {
		set  func(*machine.Spec)
		want string
	}{
		"tmpfs":        {func(s *machine.Spec) { s.Root.Tmpfs = []machine.Tmpfs{{Destination: "/alloc/aaa"}} }, "tmpfs: /alloc/aaa lies in /alloc"},
		"inaccessible": {func(s *machine.Spec) { s.Root.Inaccessible = []string{"/alloc/../alloc/aaa"} }, "inaccessible: /alloc/../alloc/aaa lies in /alloc"},
		"bind": {func(s *machine.Spec) {
			s.Binds = append(s.Binds, machine.Bind{Source: "/usr", Destination: "/alloc/aaa"})
		}, "it is a symbolic link"},
		"bind below": {func(s *machine.Spec) {
			s.Binds = append(s.Binds, machine.Bind{Source: "/srv", Destination: "/alloc/aaa/b"})
		}, "it is a symbolic link"},
		"overlay": {func(s *machine.Spec) {
			s.Overlays = []machine.Overlay{{Lower: []machine.Layer{{Path: hosttest.Busybox}}, Destination: "/alloc/aaa/b"}}
		}, "it is a symbolic link"},
	} {
		t.Run(name, func(t *testing.T) {
			spec := newMachine(t, m, "true")
			spec.Untrusted, spec.Binds = newAllocation(t)
			must.NoError(t, os.Symlink(target, spec.Untrusted+"/alloc/aaa"))
			c.set(&spec)
			for i := range spec.Binds {
				if spec.Binds[i].Source == "/usr" || spec.Binds[i].Source == "/srv" {
					spec.Binds[i].Source = hosttest.Busybox
				}
			}
			_, err := start(t, m, spec)
			must.ErrorContains(t, err, c.want)
		})
	}
}

// A file system in memory with options that change what is mounted at its place: the
// gate is on the host's /run, and the log directory is read-only.
func TestHostAttackTmpfsChangesMounts(t *testing.T) {
	m := newManager(t)
	before := mountOptions(t, "/run")
	for name, mount := range map[string]machine.Tmpfs{
		"resize /run":        {Destination: "/run/nomad-driver-nspawn/gate", Options: []string{"remount", "size=12345k"}},
		"pins read-only":     {Destination: "/run/nomad-driver-nspawn/shim", Options: []string{"remount", "ro"}},
		"logs":               {Destination: "/alloc/logs", Options: []string{"remount", "bind", "rw"}},
		"logs, disguised":    {Destination: `/al\loc/logs`, Options: []string{"remount", "bind", "rw"}},
		"logs, in an option": {Destination: "/alloc/logs", Options: []string{"size=1M,remount,bind,rw"}},
	} {
		t.Run(name, func(t *testing.T) {
			spec := newMachine(t, m, "touch /alloc/logs/out")
			spec.Untrusted, spec.Binds = newAllocation(t)
			spec.Root.Tmpfs = []machine.Tmpfs{mount}
			_, err := start(t, m, spec)
			must.ErrorContains(t, err, "tmpfs "+mount.Destination)
			must.ErrorContains(t, err, "option")
		})
	}
	// A path is taken as it is: no backslash makes another one of it.
	spec := newMachine(t, m, `touch /alloc/logs/out || grep -F 'al\134loc' /proc/mounts`)
	spec.Untrusted, spec.Binds = newAllocation(t)
	spec.Root.Tmpfs = []machine.Tmpfs{{Destination: `/al\loc/logs`}}
	out := mustStart(t, m, spec)
	must.Eq(t, Exit{}, mustWait(t, m, spec.Machine))
	must.NoError(t, m.Remove(t.Context(), spec.Machine))
	must.StrContains(t, <-out.stderr, "Read-only file system")
	must.StrContains(t, <-out.stdout, " tmpfs ")
	must.Eq(t, before, mountOptions(t, "/run"))
}

// mountOptions returns the options of a mount of the host and of its file system.
func mountOptions(t *testing.T, point string) string {
	t.Helper()
	table, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(point))
	must.NoError(t, err)
	must.SliceLen(t, 1, table)
	return table[0].Options + " " + table[0].VFSOptions
}
