package host

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Marker is a file that exists only in disposable hosts.
const Marker = "/run/disposable-host"

// systemdPath is the PATH of services (systemd.exec(5), as Debian builds it).
const systemdPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// notifySocket is the socket on which PID 1 reports that it has booted.
const notifySocket = "/run/host/notify"

// bootPlan is what the future PID 1 needs to know.
type bootPlan struct {
	Name, Suite string
	Root        string // lower layer of the overlay
	Dir         string // holds upper, work and root
	Binds       []Bind
	Addr        netip.Prefix
	Gateway     netip.Addr
	LAN         []netip.Prefix
}

// bootMain becomes PID 1. It starts in the new namespaces and in the host's cgroup, reads
// the plan from fd 3 once its uplink exists, and writes an error to fd 4. A successful
// exec closes fd 4.
func bootMain([]string) int {
	unix.CloseOnExec(3)
	unix.CloseOnExec(4)
	plan := bootPlan{}
	err := json.NewDecoder(os.NewFile(3, "plan")).Decode(&plan)
	if err == nil {
		err = plan.boot()
	}
	fmt.Fprint(os.NewFile(4, "failure"), err)
	return 1
}

func (p *bootPlan) boot() error {
	unix.Umask(0o022)
	// Nothing that is mounted after this may propagate to the machine.
	if err := mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	trees, err := openBinds(p.Binds)
	if err != nil {
		return err
	}
	devices := findDevices()
	steps := []func() error{
		p.enterRoot,
		mountAPI,
		func() error { return attachBinds(p.Binds, trees) },
		func() error { return makeDevices(devices) },
		p.writeFiles,
		func() error { return configureUplink(p.Addr, p.Gateway) },
		func() error { return configureLAN(p.LAN) },
		// As the kernel's PID 1 would (it does not when container= is set): nspawn
		// and mount propagation then behave as on a machine.
		func() error { return mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "") },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	env := []string{"container=other", "NOTIFY_SOCKET=" + notifySocket, systemdPath}
	return fmt.Errorf("exec systemd: %w", unix.Exec("/lib/systemd/systemd", []string{"/lib/systemd/systemd"}, env))
}

// enterRoot mounts the overlay and makes it the root. After that, the machine's mounts are
// no longer visible.
func (p *bootPlan) enterRoot() error {
	root := filepath.Join(p.Dir, "root")
	layers := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", p.Root, filepath.Join(p.Dir, "upper"), filepath.Join(p.Dir, "work"))
	if err := mount("overlay", root, "overlay", 0, layers); err != nil {
		return fmt.Errorf("%w (if the file system of %s cannot hold an overlay's upper layer, set %s to a directory that can)", err, p.Dir, cacheVar)
	}
	if err := os.Chdir(root); err != nil {
		return err
	}
	// pivot_root(".", ".") stacks the old root on the new one (pivot_root(2)).
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount old root: %w", err)
	}
	return os.Chdir("/")
}

// mountAPI mounts the kernel's file systems. /sys ends up read-only: networkd
// then does not wait for a udevd that never comes, and udevd does not start.
func mountAPI() error {
	const nosuid, nodev, noexec = unix.MS_NOSUID, unix.MS_NODEV, unix.MS_NOEXEC
	for _, m := range []struct {
		kind, target string
		flags        uintptr
		data         string
	}{
		{"proc", "/proc", nosuid | nodev | noexec, ""},
		{"sysfs", "/sys", nosuid | nodev | noexec, ""},
		{"cgroup2", "/sys/fs/cgroup", nosuid | nodev | noexec, ""},
		{"tmpfs", "/run", nosuid | nodev, "mode=0755"},
		{"tmpfs", "/dev", nosuid, "mode=0755"},
		{"devpts", "/dev/pts", nosuid | noexec, "newinstance,ptmxmode=0666,mode=0620,gid=5"},
		{"tmpfs", "/dev/shm", nosuid | nodev, "mode=1777"},
	} {
		if strings.HasPrefix(m.target, "/dev/") {
			if err := os.MkdirAll(m.target, 0o755); err != nil {
				return err
			}
		}
		if err := mount(m.kind, m.target, m.kind, m.flags, m.data); err != nil {
			return err
		}
	}
	return mount("", "/sys", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|nosuid|nodev|noexec, "")
}

func mount(source, target, kind string, flags uintptr, data string) error {
	if err := unix.Mount(source, target, kind, flags, data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", kind, target, err)
	}
	return nil
}

// device is a device node of the machine that hosts also get.
type device struct {
	path string
	mode uint32
	rdev uint64
}

// findDevices leaves out /dev/kmsg: journald would read the machine's log, and guests
// could write to it.
func findDevices() []device {
	paths := []string{
		"/dev/full", "/dev/fuse", "/dev/loop-control", "/dev/net/tun", "/dev/null",
		"/dev/random", "/dev/tty", "/dev/urandom", "/dev/zero",
	}
	var found []device
	for _, path := range paths {
		var st unix.Stat_t
		if unix.Stat(path, &st) == nil {
			found = append(found, device{path, st.Mode, st.Rdev})
		}
	}
	return found
}

// makeDevices creates the nodes rather than binding them: systemd would show
// every bind as a mount unit.
func makeDevices(devices []device) error {
	unix.Umask(0)
	defer unix.Umask(0o022)
	if err := os.MkdirAll("/dev/net", 0o755); err != nil {
		return err
	}
	for _, d := range devices {
		if err := unix.Mknod(d.path, d.mode, int(d.rdev)); err != nil {
			return fmt.Errorf("make device %s: %w", d.path, err)
		}
	}
	if err := makeLoops(); err != nil {
		return err
	}
	return os.Symlink("pts/ptmx", "/dev/ptmx")
}

// loopMajor is fixed (Documentation/admin-guide/devices.txt of the kernel), and
// the minor is the number of the device unless the machine's kernel has
// loop.max_part.
const loopMajor, loops, partitions = 7, 64, 8

// makeLoops creates the nodes of loop devices, which the kernel creates and removes as
// they are used. The numbers of their partitions differ each time, so the nodes of
// partitions are links into the machine's devtmpfs, the only one.
func makeLoops() error {
	const kernel = ".devtmpfs"
	if err := os.Mkdir("/dev/"+kernel, 0o700); err != nil {
		return err
	}
	if err := mount("devtmpfs", "/dev/"+kernel, "devtmpfs", 0, ""); err != nil {
		return err
	}
	for i := range loops {
		name := fmt.Sprintf("loop%d", i)
		if err := unix.Mknod("/dev/"+name, unix.S_IFBLK|0o600, int(unix.Mkdev(loopMajor, uint32(i)))); err != nil {
			return fmt.Errorf("make device %s: %w", name, err)
		}
		for n := range partitions {
			part := fmt.Sprintf("%sp%d", name, n+1)
			if err := os.Symlink(kernel+"/"+part, "/dev/"+part); err != nil {
				return err
			}
		}
	}
	return nil
}

// writeFiles gives the host its identity and turns IP forwarding on. The
// machine id keeps systemd from taking this for a first boot, with its
// questions and presets (machine-id(5)).
func (p *bootPlan) writeFiles() error {
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		return err
	}
	for _, f := range []struct{ path, content string }{
		{"/etc/hostname", p.Name},
		{"/etc/hosts", "127.0.0.1 localhost\n" + p.Addr.Addr().String() + " " + p.Name},
		{"/etc/machine-id", hex.EncodeToString(id)},
		{"/proc/sys/kernel/hostname", p.Name},
		{"/proc/sys/net/ipv4/ip_forward", "1"},
		{"/proc/sys/net/ipv6/conf/all/forwarding", "1"},
		{Marker, p.Suite},
	} {
		if err := os.WriteFile(f.path, []byte(f.content+"\n"), 0o644); err != nil {
			return err
		}
	}
	return nil
}
