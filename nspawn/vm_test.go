package nspawn

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/e2e/host/hosttest"
	"nomad-driver-nspawn/e2e/vm/vmtest"
	"nomad-driver-nspawn/nspawn/cgroup"
	"nomad-driver-nspawn/nspawn/dirs"
	"nomad-driver-nspawn/nspawn/enter"
	"nomad-driver-nspawn/nspawn/idmap"
	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/quota"
	"nomad-driver-nspawn/nspawn/rootfs"
)

// The tests in this file need what a disposable host lacks: the controllers of cgroup v2,
// swap, and other kernels: the oldest supported one is 6.1 of Debian 12.

const mebibyte = 1 << 20

// groupFile returns the content of a file of the control group of the machine's unit.
func groupFile(t *testing.T, m *Manager, name, file string) string {
	t.Helper()
	unit, err := m.unit(t.Context(), name)
	must.NoError(t, err)
	text, err := os.ReadFile(filepath.Join(cgroup.Root, unit.ControlGroup, file))
	must.NoError(t, err)
	return strings.TrimSpace(string(text))
}

// says runs a script in the machine and returns what it prints.
func says(t *testing.T, m *Manager, name, script string) string {
	t.Helper()
	var out strings.Builder
	command := enter.Command{Argv: []string{"/bin/sh", "-c", script}, Stdout: &out, Stderr: &out}
	code, err := m.Exec(t.Context(), name, command)
	must.NoError(t, err)
	must.Zero(t, code, must.Sprint(out.String()))
	return strings.TrimSpace(out.String())
}

func mustUsage(t *testing.T, m *Manager, name string) cgroup.Usage {
	t.Helper()
	usage, err := m.Usage(name)
	must.NoError(t, err)
	return usage
}

func TestVMHost(t *testing.T) {
	vmtest.Require(t)
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	must.NoError(t, err)
	t.Log(string(release))
	system, err := os.ReadFile("/etc/os-release")
	must.NoError(t, err)
	if strings.Contains(string(system), "VERSION_CODENAME=bookworm") {
		must.StrHasPrefix(t, "6.1.", string(release))
	}
	must.NoError(t, rootfs.Probe(t.TempDir(), rootfs.Overlay.Mount))
	m := newManager(t)
	never := dirs.Dirs{Run: filepath.Join(t.TempDir(), "run"), State: filepath.Join(t.TempDir(), "state")} // where no machine has run
	host := DetectHost(t.Context(), m.bus, never)
	must.SliceEmpty(t, host.Problems)
	must.SliceContainsSubset(t, host.Controllers, []string{"cpu", "cpuset", "io", "memory", "pids"})
	must.NoError(t, host.Overlay)
	must.NoError(t, host.UserNamespaces)
}

// allocate returns a command that fills the given amount of its own memory, and ends.
func allocate(size int) string {
	return fmt.Sprintf("dd if=/dev/zero of=/dev/null bs=%d count=1", size)
}

// TestVMOutOfMemory runs on a host with swap: memory that may be swapped out is no reason
// to kill a process.
func TestVMOutOfMemory(t *testing.T) {
	vmtest.Require(t)
	swaps, err := os.ReadFile("/proc/swaps")
	must.NoError(t, err)
	must.StrContains(t, string(swaps), "/swap")
	m := newManager(t)
	for name, c := range map[string]struct {
		mode   machine.Mode
		script string
		killed bool
	}{
		"payload is PID 1":     {machine.ProcessOne, "exec " + allocate(150*mebibyte), true},
		"payload is PID 2":     {machine.ProcessTwo, "exec " + allocate(150*mebibyte), true},
		"child of PID 1":       {machine.ProcessOne, allocate(150*mebibyte) + "; sleep 1000", true},
		"child of PID 2":       {machine.ProcessTwo, allocate(150*mebibyte) + "; sleep 1000", true},
		"enough for PID 1":     {machine.ProcessOne, "exec " + allocate(30*mebibyte), false},
		"enough for a child":   {machine.ProcessTwo, allocate(30*mebibyte) + "; true", false},
		"failure of no memory": {machine.ProcessTwo, "kill -KILL $$", false},
	} {
		t.Run(name, func(t *testing.T) {
			spec := newMachine(t, m, c.script)
			spec.Mode, spec.Limits.MemoryMax = c.mode, 64*mebibyte
			out := mustStart(t, m, spec)
			exit := mustEnd(t, out)
			must.Eq(t, c.killed, exit.OOMKilled)
			must.Eq(t, c.killed, exit.Killed == "dd", must.Sprint(exit.Killed))
			must.Eq(t, c.killed, mustWait(t, m, spec.Machine).OOMKilled)
		})
	}
}

// mustEnd returns how the machine ended, as its follower reports it.
func mustEnd(t *testing.T, out output) Exit {
	t.Helper()
	last := Event{}
	for event := range out.events {
		last = event
	}
	must.NoError(t, last.Err)
	must.EqOp(t, Ended, last.Kind)
	return last.Exit
}

// TestVMKilledPayload also runs on a kernel before 6.15, which does not report the signal
// that killed the payload.
func TestVMKilledPayload(t *testing.T) {
	vmtest.Require(t)
	m := newManager(t)
	for mode, want := range map[machine.Mode]Exit{machine.ProcessOne: {Code: 1}, machine.ProcessTwo: {Code: 255}} {
		spec := newMachine(t, m, "sleep 1000; true")
		spec.Mode = mode
		out := mustStart(t, m, spec)
		awaitTrap(t, m, spec)
		if isKernel(t, 6, 15) {
			want = Exit{Code: 137, Signal: 9}
			awaitHeld(t, m, spec)
		}
		must.NoError(t, m.Signal(t.Context(), spec.Machine, mode, syscall.SIGKILL))
		must.Eq(t, want, mustEnd(t, out))
	}
}

// TestVMOutOfMemoryByExec checks that commands that are run in a machine are within its
// limits, too.
func TestVMOutOfMemoryByExec(t *testing.T) {
	vmtest.Require(t)
	m := newManager(t)
	spec := newMachine(t, m, "sleep 1000")
	spec.Limits.MemoryMax = 64 * mebibyte
	mustStart(t, m, spec)
	code, err := m.Exec(t.Context(), spec.Machine, enter.Command{Argv: []string{"/bin/sh", "-c", "exec " + allocate(150*mebibyte)}})
	must.NoError(t, err)
	must.Eq(t, 128+int(syscall.SIGKILL), code)
	must.True(t, mustWait(t, m, spec.Machine).OOMKilled)
}

func TestVMLimitsArrive(t *testing.T) {
	vmtest.Require(t)
	m := newManager(t)
	limited := newMachine(t, m, "sleep 1000")
	limited.Limits = machine.Limits{MemoryMax: 64 * mebibyte, MemoryLow: 16 * mebibyte, CPUWeight: 37, AllowedCPUs: []int{1}, CPUQuota: time.Second / 2}
	free := newMachine(t, m, "sleep 1000")
	const show = "cd /sys/fs/cgroup; cat memory.max memory.swap.max cpu.max pids.max; (echo 1 >memory.max) 2>/dev/null || echo refused"
	for _, c := range []struct {
		spec  machine.Spec
		nproc string
		shown string // inside
		files map[string]string
	}{
		{limited, "1", "67108864\n0\n50000 100000\n16384\nrefused", map[string]string{
			"memory.max": "67108864", "memory.low": "16777216", "memory.swap.max": "0",
			"cpu.weight": "37", "cpuset.cpus": "1", "cpuset.cpus.effective": "1", "pids.max": "16384",
			"cgroup.subtree_control": "cpuset cpu io memory pids",
		}},
		{free, "2", "max\nmax\nmax 100000\n16384\nrefused", map[string]string{
			"memory.max": "max", "memory.low": "0", "memory.swap.max": "max",
			"cpu.weight": "100", "cpuset.cpus": "", "cpuset.cpus.effective": "0-1", "pids.max": "16384",
		}},
	} {
		mustStart(t, m, c.spec)
		got := map[string]string{}
		for name := range c.files {
			got[name] = groupFile(t, m, c.spec.Machine, name)
		}
		must.Eq(t, c.files, got)
		must.Eq(t, c.nproc, says(t, m, c.spec.Machine, "nproc"))
		must.Eq(t, c.shown, says(t, m, c.spec.Machine, show))
	}
}

// TestVMTasksMax checks that the payload, its children, and commands that are run in the
// machine count as its tasks.
func TestVMTasksMax(t *testing.T) {
	vmtest.Require(t)
	m := newManager(t)
	spec := newMachine(t, m, "sleep 1000")
	spec.Limits.Pids = 12
	mustStart(t, m, spec)
	must.Eq(t, "3", groupFile(t, m, spec.Machine, "pids.current")) // nspawn, its stub and sleep
	must.StrContains(t, says(t, m, spec.Machine, "(for i in $(seq 50); do sleep 1000 & done) 2>&1 || true"), "can't fork")
	tasks, err := strconv.Atoi(groupFile(t, m, spec.Machine, "pids.current"))
	must.NoError(t, err)
	must.Between(t, 8, tasks, 12)
}

func TestVMUsage(t *testing.T) {
	vmtest.Require(t)
	m := newManager(t)
	spec := newMachine(t, m, `mkfifo /go /ready /held
		cat /go
		dd if=/dev/zero of=/held bs=42M count=1 & # it fills its buffer, and then waits for a reader
		exec 3</held
		head -c 1 <&3 >/dev/null
		dd if=/dev/zero of=/file bs=1M count=20
		echo ready >/ready
		sleep 1000; true`) // true: else the shell becomes sleep
	mustStart(t, m, spec)
	says(t, m, spec.Machine, "until [ -p /ready ]; do :; done")
	before := mustUsage(t, m, spec.Machine)
	says(t, m, spec.Machine, "echo go >/go; cat /ready")
	after := mustUsage(t, m, spec.Machine)

	must.Greater(t, before.CPUUser+before.CPUSystem, after.CPUUser+after.CPUSystem)
	must.GreaterEq(t, *before.Memory.RSS+40*mebibyte, *after.Memory.RSS)
	must.GreaterEq(t, *before.Memory.Cache+20*mebibyte, *after.Memory.Cache)
	must.GreaterEq(t, *before.Memory.Current+60*mebibyte, *after.Memory.Current)
	must.GreaterEq(t, *after.Memory.Current, *after.Memory.Peak)
	must.Positive(t, *after.Memory.Kernel)
	must.Less(t, *after.Memory.Current, *after.Memory.Kernel)
	must.Zero(t, *after.Memory.Swap)

	// The kernel moves out what it can, and returns EAGAIN if that is less.
	unit, err := m.unit(t.Context(), spec.Machine)
	must.NoError(t, err)
	err = os.WriteFile(filepath.Join(cgroup.Root, unit.ControlGroup, "memory.reclaim"), []byte("60M"), 0)
	must.True(t, err == nil || errors.Is(err, syscall.EAGAIN), must.Sprint(err))
	swapped := mustUsage(t, m, spec.Machine)
	must.GreaterEq(t, 10*mebibyte, *swapped.Memory.Swap)
	must.Less(t, *after.Memory.RSS, *swapped.Memory.RSS)
	must.GreaterEq(t, *after.Memory.Current, *swapped.Memory.Peak)
}

// TestVMOverlay runs a machine on a root with ID-mapped layers, and then again on the same
// layers.
func TestVMOverlay(t *testing.T) {
	vmtest.Require(t)
	m := newManager(t)
	spec := newMachine(t, m, `ls /mine
		echo x >/mine; chown 1000:1001 /mine; mkdir -p /srv/deep; mv /etc/passwd /srv
		stat -c %u:%g / /etc /bin/busybox /mine /srv/passwd
		exit 7`)
	for range 2 {
		out := mustStart(t, m, spec)
		must.Eq(t, Exit{Code: 7}, mustWait(t, m, spec.Machine))
		var written syscall.Stat_t
		must.NoError(t, syscall.Stat(filepath.Join(m.dirs.WritableLayer(spec.Machine), "upper/mine"), &written))
		must.Eq(t, []uint32{1000, 1001}, []uint32{written.Uid, written.Gid}) // not shifted on disk
		must.NoError(t, m.Remove(t.Context(), spec.Machine))
		must.Eq(t, "0:0\n0:0\n0:0\n1000:1001\n0:0\n", <-out.stdout)
	}
	must.FileExists(t, hosttest.Busybox+"/etc/passwd")
}

// TestVMChownedRoot uses a tmpfs, which kernels before 6.3 cannot ID-map, below the image
// or below all directories of the driver.
func TestVMChownedRoot(t *testing.T) {
	vmtest.Require(t)
	m := newManager(t)
	memory := t.TempDir()
	must.NoError(t, syscall.Mount("tmpfs", memory, "tmpfs", 0, "size=64m"))
	t.Cleanup(func() { must.NoError(t, syscall.Unmount(memory, syscall.MNT_DETACH)) })
	host := DetectHost(t.Context(), m.bus, dirs.Dirs{Run: filepath.Join(memory, "run"), State: filepath.Join(memory, "state")})
	must.NoError(t, host.ChownedOverlay)
	if isKernel(t, 6, 3) {
		must.NoError(t, host.Overlay)
		return
	}
	must.ErrorIs(t, host.Overlay, idmap.ErrUnmappable)

	image := newOwnedImage(t, memory)
	before := listing(t, image)
	spec := newMachine(t, m, `stat -c '%u:%g %a' / /opt/setuid /srv/www/page
		su www -c '/opt/cat /proc/self/status | grep CapEff'; echo x >/etc/passwd`)
	spec.Root.Image = image
	out := mustStart(t, m, spec)
	mustWait(t, m, spec.Machine)
	must.NoError(t, m.Remove(t.Context(), spec.Machine))
	must.Eq(t, "0:0 755\n0:0 4755\n33:33 644\nCapEff:\t0000000000002000\n", <-out.stdout)
	must.StrContains(t, strings.Join(out.notices, "\n"), "file system tmpfs")
	must.Eq(t, before, listing(t, image))
}

// TestVMBindOfTmpfs binds a tmpfs, as Nomad's directory for a task's secrets is one. It
// can be ID-mapped since Linux 6.3.
func TestVMBindOfTmpfs(t *testing.T) {
	vmtest.Require(t)
	m := newManager(t)
	secrets := filepath.Join(t.TempDir(), "secrets")
	must.NoError(t, os.Mkdir(secrets, 0o777))
	must.NoError(t, syscall.Mount("tmpfs", secrets, "tmpfs", syscall.MS_NOEXEC, "size=1m"))
	t.Cleanup(func() { must.NoError(t, syscall.Unmount(secrets, syscall.MNT_DETACH)) })
	must.NoError(t, os.WriteFile(filepath.Join(secrets, "token"), []byte("secret\n"), 0o600))
	spec := newMachine(t, m, "cat /secrets/token; stat -c %u:%g /secrets/token; echo mine >/secrets/mine")
	spec.Binds = []machine.Bind{{Source: secrets, Destination: "/secrets", ChownFallback: true}}
	out := mustStart(t, m, spec)
	must.Eq(t, Exit{}, mustWait(t, m, spec.Machine))
	must.NoError(t, m.Remove(t.Context(), spec.Machine))
	must.Eq(t, "secret\n0:0\n", <-out.stdout)
	must.FileExists(t, filepath.Join(secrets, "mine"))
}

func TestVMNetworkNamespace(t *testing.T) {
	vmtest.Require(t)
	m := newManager(t)
	must.NoError(t, exec.Command("ip", "netns", "add", "vm").Run())
	t.Cleanup(func() { must.NoError(t, exec.Command("ip", "netns", "delete", "vm").Run()) })
	spec := newMachine(t, m, "mkdir /www; echo hello >/www/x; exec httpd -f -p 80 -h /www")
	spec.Network.Namespace = "/run/netns/vm"
	mustStart(t, m, spec)
	var namespace syscall.Stat_t
	must.NoError(t, syscall.Stat(spec.Network.Namespace, &namespace))
	must.Eq(t, fmt.Sprintf("net:[%d]", namespace.Ino), says(t, m, spec.Machine, "readlink /proc/self/ns/net"))
	must.Eq(t, "hello", says(t, m, spec.Machine, "until wget -qO- http://127.0.0.1/x 2>/dev/null; do :; done"))
	must.NotEq(t, "0", strings.Fields(says(t, m, spec.Machine, "cat /proc/self/uid_map"))[1])
}

// TestVMBoot checks that a booted guest has controllers of its own: it limits its
// services. If one of them is killed, that does not affect the machine.
func TestVMBoot(t *testing.T) {
	vmtest.Require(t)
	m := newManager(t)
	spec := newBooted(t, m)
	spec.Limits.MemoryMax = 256 * mebibyte
	awaitEvent(t, mustStart(t, m, spec), Ready)
	must.Eq(t, "oom-kill", says(t, m, spec.Machine,
		"systemd-run -q --unit=hog -p MemoryMax=20M -p MemorySwapMax=0 --wait "+allocate(100*mebibyte)+" >/dev/null;"+
			" systemctl show -P Result hog"))
	code, err := m.Exec(t.Context(), spec.Machine, enter.Command{Argv: []string{"/bin/sh", "-c", "exec " + allocate(400*mebibyte)}})
	must.NoError(t, err)
	must.Eq(t, 128+int(syscall.SIGKILL), code) // by the machine's limit
	must.Between(t, 200*mebibyte, *mustUsage(t, m, spec.Machine).Memory.Peak, 256*mebibyte)
	status, err := m.Status(t.Context(), spec.Machine)
	must.NoError(t, err)
	must.Nil(t, status.Exit)
	must.NoError(t, m.Stop(t.Context(), spec.Machine, spec.Mode, machine.Halt, 2*time.Minute, told(t)))
	must.Eq(t, Exit{}, mustWait(t, m, spec.Machine))
}

// TestVMDiskLimit runs a machine on a file system with project quotas.
func TestVMDiskLimit(t *testing.T) {
	vmtest.Require(t)
	image, state := filepath.Join(t.TempDir(), "image"), filepath.Join(t.TempDir(), "state")
	must.NoError(t, os.Mkdir(state, 0o700))
	for _, command := range [][]string{
		{"mkfs.ext4", "-q", "-O", "quota,project", image, "64M"},
		{"mount", "-o", "loop,prjquota", image, state},
	} {
		out, err := exec.Command(command[0], command[1:]...).CombinedOutput()
		must.NoError(t, err, must.Sprint(string(out)))
	}
	t.Cleanup(func() { must.NoError(t, syscall.Unmount(state, 0)) }) // nothing may use it any more
	m := NewManager(newManager(t).bus, dirs.Dirs{Run: dirs.Default.Run, State: state}, nil)
	must.EqOp(t, quota.Projects, DetectHost(t.Context(), m.bus, m.dirs).QuotaKind)

	// The guest has no chattr, so use the host's.
	const host = "/host/lib/x86_64-linux-gnu"
	tool := host + "/ld-linux-x86-64.so.2 --library-path " + host + " /host/bin/"
	for namespace, want := range map[bool]string{
		true:  "8192\nquota exceeded\nfits\n",
		false: "8192\nquota exceeded\nmoved\nfits\n", // its root is the host's root
	} {
		spec := newMachine(t, m, `df -k / | tail -n 1 | tr -s ' ' | cut -d ' ' -f 2
			dd if=/dev/zero of=/big bs=64k count=1000 2>&1 | grep -o 'quota exceeded'
			rm /big
			mkdir -p /deep/in/it
			`+tool+`chattr -R -p 7 /deep && echo moved
			dd if=/dev/zero of=/fits bs=64k count=16 2>/dev/null && echo fits`)
		spec.Binds = []machine.Bind{{Source: "/usr", Destination: "/host", ReadOnly: true}}
		spec.Root.UserNamespace, spec.Root.WritableLayer.Max = namespace, 8*mebibyte
		out := mustStart(t, m, spec)
		must.Eq(t, Exit{}, mustWait(t, m, spec.Machine))
		must.NoError(t, m.Remove(t.Context(), spec.Machine))
		must.Eq(t, want, <-out.stdout, must.Sprint(<-out.stderr))
	}
	out, err := exec.Command("find", state+"/machines", "-mindepth", "1").CombinedOutput()
	must.NoError(t, err)
	must.Eq(t, "", string(out))
}
