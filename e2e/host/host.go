package host

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Released lists the Debian releases that only get fixes. They have systemd 252 and 257.
var Released = []string{"bookworm", "trixie"}

// Next is the release that Debian is working on. Its packages change every day, so a test
// can fail on it without a change here.
const Next = "forky"

// suites lists all releases that a host can have.
var suites = append(slices.Clone(Released), Next)

// suitesVar names the environment variable that selects the suites to test on.
const suitesVar = "NSPAWN_E2E_SUITES"

// Chosen returns the suites to test on: those in the environment variable
// NSPAWN_E2E_SUITES, or else the released ones.
func Chosen() []string {
	if chosen := strings.Fields(os.Getenv(suitesVar)); len(chosen) > 0 {
		return chosen
	}
	return Released
}

// Options say what host to boot.
type Options struct {
	Suite string // one of Released or Next; bookworm when empty
	Name  string // also the hostname: lower case letters, digits, hyphens; made up when empty
	Binds []Bind
	// LAN is the name of a network. Hosts with the same LAN reach each other by the
	// interface lan0, like separate machines. Up to 10 lower case letters and digits; if
	// it is empty, there is no such interface.
	LAN string
}

// Host is a disposable host that is up.
type Host struct {
	record     *record
	supervisor *exec.Cmd // nil for a host that someone else started
	control    *os.File
	reports    *json.Decoder
}

// Up boots a host and returns when it has booted. Failed units are listed on standard
// error. The host goes down with [Host.Down] or with the calling process, unless it is
// detached. Ctx limits the boot, not the host's life.
func Up(ctx context.Context, opts Options) (*Host, error) {
	p, err := opts.plan(ctx)
	if err != nil {
		return nil, err
	}
	h, err := startSupervisor()
	if err != nil {
		return nil, err
	}
	if err := h.boot(ctx, p); err != nil {
		return nil, errors.Join(fmt.Errorf("boot host %s: %w", p.Name, err), h.Down())
	}
	if err := h.checkUnits(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("boot host %s: %w", p.Name, err), h.Down())
	}
	return h, nil
}

func (o Options) plan(ctx context.Context) (plan, error) {
	if os.Geteuid() != 0 {
		return plan{}, errors.New("disposable hosts need root")
	}
	if o.Suite == "" {
		o.Suite = Released[0]
	}
	if o.Name == "" {
		o.Name = "host-" + strings.ToLower(rand.Text()[:8])
	}
	if !validName.MatchString(o.Name) {
		return plan{}, fmt.Errorf("name %q: want up to 32 lower case letters, digits and hyphens", o.Name)
	}
	if o.LAN != "" && !validLAN.MatchString(o.LAN) {
		return plan{}, fmt.Errorf("LAN %q: want up to 10 lower case letters and digits", o.LAN)
	}
	for _, b := range o.Binds {
		if !filepath.IsAbs(b.Source) || !filepath.IsAbs(b.Target) {
			return plan{}, fmt.Errorf("bind %s:%s: want absolute paths", b.Source, b.Target)
		}
	}
	root, err := hostRoot(ctx, o.Suite)
	if err != nil {
		return plan{}, err
	}
	base, err := cacheDir("hosts")
	return plan{Name: o.Name, Suite: o.Suite, Root: root, Base: base, Binds: o.Binds, LAN: o.LAN}, err
}

func startSupervisor() (*Host, error) {
	controlR, controlW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer controlR.Close()
	reportR, reportW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer reportW.Close()
	cmd := helper(superviseName)
	cmd.ExtraFiles = []*os.File{controlR, reportW}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start supervisor: %w", err)
	}
	return &Host{supervisor: cmd, control: controlW, reports: json.NewDecoder(reportR)}, nil
}

// boot sends the plan to the supervisor and waits for the answer.
func (h *Host) boot(ctx context.Context, p plan) error {
	if err := json.NewEncoder(h.control).Encode(p); err != nil {
		return fmt.Errorf("send plan: %w", err)
	}
	answer := make(chan error, 1)
	go func() {
		r := report{}
		err := h.reports.Decode(&r)
		if errors.Is(err, io.EOF) {
			err = errors.New("the supervisor died")
		} else if err == nil && r.Error != "" {
			err = errors.New(r.Error)
		}
		h.record = r.Record
		answer <- err
	}()
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		h.control.Close() // the supervisor gives up and answers
		return errors.Join(context.Cause(ctx), <-answer)
	}
}

// checkUnits reports the failed units of the host.
func (h *Host) checkUnits(ctx context.Context) error {
	var complaint strings.Builder
	cmd := h.Command(ctx, "systemctl", "is-system-running", "--wait")
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	switch state := strings.TrimSpace(string(out)); state {
	case "running":
		return nil
	case "degraded":
		failed, err := h.Command(ctx, "systemctl", "list-units", "--failed", "--plain", "--no-legend").Output()
		progress("host %s is degraded, failed units:\n%s", h.Name(), failed)
		return err
	default:
		return fmt.Errorf("ask systemd for its state: %q: %w: %s", state, err, complaint.String())
	}
}

// Detach lets the host outlive the calling process.
func (h *Host) Detach() error {
	if err := json.NewEncoder(h.control).Encode(detachWord); err != nil {
		return fmt.Errorf("detach host %s: %w", h.Name(), err)
	}
	return nil
}

// Open finds a host that is up.
func Open(name string) (*Host, error) {
	hosts, err := List()
	if err != nil {
		return nil, err
	}
	for _, h := range hosts {
		if h.Name() == name {
			return h, nil
		}
	}
	return nil, fmt.Errorf("host %s is not up", name)
}

// List returns the hosts that are up on this machine, by name. It also removes what dead
// hosts have left.
func List() ([]*Host, error) {
	records, err := living()
	if err != nil {
		return nil, err
	}
	var hosts []*Host
	for _, r := range records {
		hosts = append(hosts, &Host{record: r})
	}
	return hosts, nil
}

// Name is the host's name.
func (h *Host) Name() string { return h.record.Name }

// Suite is the Debian release the host runs.
func (h *Host) Suite() string { return h.record.Suite }

// Addr is the host's address on its uplink, reachable from the machine.
func (h *Host) Addr() netip.Addr { return h.record.hostAddr().Addr() }

// LANAddrs returns the host's addresses in its LAN, IPv4 and IPv6. The machine itself is
// not in the LAN.
func (h *Host) LANAddrs() []netip.Addr {
	var addrs []netip.Addr
	for _, prefix := range h.record.lanAddrs() {
		addrs = append(addrs, prefix.Addr())
	}
	return addrs
}

// Gateway is the machine's address on the host's uplink.
func (h *Host) Gateway() netip.Addr { return h.record.callerAddr().Addr() }

// Root is the host's root file system as seen from the machine. Absolute symbolic links in
// it must not be followed: they lead to the machine's files.
func (h *Host) Root() string {
	return filepath.Join("/proc", strconv.Itoa(h.record.Leader), "root")
}

// Command runs name in the host, in all of its namespaces and in its cgroup,
// as root in / with the environment a service has; append to Env for more.
// The name is looked up in the host. Exit status and signals are passed on; a
// command that was killed gives 128 plus the signal, as in a shell. When ctx
// ends, or the calling process, the command is killed.
func (h *Host) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", append([]string{h.record.cgroup(), strconv.Itoa(h.record.Leader), name}, args...)...)
	cmd.Args = append([]string{enterName}, cmd.Args[1:]...)
	cmd.Env = []string{"HOME=/root", "LANG=C.UTF-8", "LOGNAME=root", systemdPath, "SHELL=/bin/bash", "USER=root"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// Down kills the host's processes, removes everything it had, and returns when that is
// done. It is not an error if the host is already down.
func (h *Host) Down() error {
	if h.supervisor == nil {
		return h.terminate()
	}
	h.control.Close()
	r := report{}
	if err := h.reports.Decode(&r); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("wait for supervisor: %w", err)
	}
	_ = h.supervisor.Wait() // its report says more than its exit status
	if r.Error != "" {
		return errors.New(r.Error)
	}
	_, err := living() // also sweeps, in case the supervisor was killed
	return err
}

// terminate ends the supervisor of a host that another process started and
// waits until its lock is free.
func (h *Host) terminate() error {
	fd, err := unix.PidfdOpen(h.record.Supervisor, 0)
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("find supervisor: %w", err)
	}
	if err == nil {
		defer unix.Close(fd)
	}
	alive, err := os.OpenFile(h.record.path("alive"), os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open lock of host %s: %w", h.Name(), err)
	}
	defer alive.Close()
	// The lock is held, which proves that the process is still the supervisor.
	if flock(alive, unix.LOCK_EX|unix.LOCK_NB) != nil {
		if err := unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("end supervisor: %w", err)
		}
		if err := flock(alive, unix.LOCK_EX); err != nil {
			return fmt.Errorf("wait for supervisor: %w", err)
		}
	}
	alive.Close()
	_, err = living()
	return err
}
