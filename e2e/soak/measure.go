package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/e2e/soak/hostproc"
)

// measure is what the plugin uses, and what the host has, while no task runs.
type measure struct {
	goroutines, files, threads, connections int
	inventory                               []string
}

func (m measure) String() string {
	return fmt.Sprintf("%d goroutines, %d open files, %d threads, %d D-Bus connections", m.goroutines, m.files, m.threads, m.connections)
}

// slack allows for what the plugin may be doing at the moment, such as a fingerprint or a
// search for dangling machines. A real leak is larger: every cycle of the last quarter
// (quiet) adds to it.
const slack = 5

// compare checks that nothing has grown except the number of threads: Go keeps as many as
// it has ever needed.
func (m measure) compare(after measure, v *violations) {
	for _, figure := range []struct {
		name          string
		before, after int
	}{
		{"goroutines", m.goroutines + slack, after.goroutines},
		{"open files", m.files + slack, after.files},
		{"D-Bus connections", m.connections, after.connections},
	} {
		if figure.after > figure.before {
			v.add("%s of the plugin have grown from, at most, %d to %d", figure.name, figure.before, figure.after)
		}
	}
	for _, line := range without(after.inventory, m.inventory) {
		v.add("left on the host: %s", line)
	}
	for _, line := range without(m.inventory, after.inventory) {
		v.add("gone from the host: %s", line)
	}
}

// without returns the elements of a list that another list lacks.
func without(list, other []string) (part []string) {
	for _, line := range list {
		if !slices.Contains(other, line) {
			part = append(part, line)
		}
	}
	return part
}

// measure ends the plugin: SIGQUIT makes Go write its goroutines to the log.
func (s *soak) measure(ctx context.Context) (m measure, err error) {
	if m.inventory, err = s.inventory(ctx); err != nil {
		return m, err
	}
	plugin, err := hostproc.One(s.agent.Host, hostproc.Plugin)
	if err != nil {
		return m, err
	}
	dir := fmt.Sprintf("/proc/%d/", plugin.PID)
	files, err := os.ReadDir(dir + "fd")
	if err != nil {
		return m, fmt.Errorf("count files of the plugin: %w", err)
	}
	threads, err := os.ReadDir(dir + "task")
	if err != nil {
		return m, fmt.Errorf("count threads of the plugin: %w", err)
	}
	m.files, m.threads = len(files), len(threads)
	names, err := s.agent.Command(ctx, "busctl", "list", "--unique", "--no-legend", "--no-pager")
	if err != nil {
		return m, err
	}
	m.connections = strings.Count(names, " nomad-driver-ns")
	m.goroutines, err = s.goroutines(ctx, plugin)
	return m, err
}

// goroutine matches a goroutine of a dump. Number 0 is the scheduler's goroutine of each
// thread.
var goroutine = regexp.MustCompile(`goroutine [1-9]\d* (gp=\S+ m=\S+ (mp=\S+ )?)?\[`)

func (s *soak) goroutines(ctx context.Context, plugin hostproc.Process) (int, error) {
	before, err := s.agent.Log(ctx)
	if err != nil {
		return 0, err
	}
	if err := plugin.Signal(unix.SIGQUIT); err != nil {
		return 0, err
	}
	if err := plugin.Ended(ctx); err != nil {
		return 0, err
	}
	if _, err := s.agent.AwaitDriver(ctx, true); err != nil {
		return 0, err
	}
	after, err := s.agent.Log(ctx)
	if err != nil {
		return 0, err
	}
	count := len(goroutine.FindAllString(strings.TrimPrefix(after, before), -1))
	if count == 0 {
		return 0, errors.New("count goroutines of the plugin: the agent's log contains none")
	}
	return count, nil
}

// takeInventory lists everything that a task could leave on the host, one item per line.
// It leaves out the log collectors and directories that a killed Nomad agent leaves.
const takeInventory = `
systemctl list-units --all --plain --no-legend 'nomad-nspawn-*' '*.scope' | sed 's/^/unit /; s/ *loaded.*//'
find /run/systemd/transient -name '*nspawn*' -printf 'unit file %p\n'
machinectl list --no-legend | sed 's/^/machine /'
find /run/systemd/machines -mindepth 1 -printf 'machine file %p\n'
cut -d ' ' -f 5 /proc/self/mountinfo | grep -v ^/var/lib/nomad/alloc/ | sed 's/^/mount /'
find /run/netns -mindepth 1 -printf 'netns %p\n'
ip -oneline link | sed 's/^[0-9]*: \([^:@]*\).*/link \1/'
ip -oneline address | sed 's/^[0-9]*: \([^ ]* *[^ ]* *[^ ]*\).*/address \1/'
ip neigh show nud permanent | sed 's/^/neighbor /'
for table in 'inet nomad-nspawn' 'bridge nomad-nspawn' 'ip io.systemd.nat' 'ip6 io.systemd.nat'; do
	nft list table $table 2>/dev/null | sed -n "/comment\|elements/ s/^/forwarded $table /p"
done
for list in iptables ip6tables; do $list-save 2>/dev/null | grep nomad-nspawn | sed "s/^/$list /"; done
ss --listening --tcp --udp --numeric --no-header --processes | grep nomad-driver-ns | awk '{ print "reserved", $1, $5 }'
find /run/nomad-driver-nspawn /var/lib/nomad-driver-nspawn -mindepth 2 -maxdepth 2 -not '(' -path '*/images/*' -type d -empty ')' -printf 'file %p %l\n'
find /run/systemd/nspawn* -mindepth 2 -maxdepth 2 -printf 'nspawn %p\n'
find /var/log/journal -type l -printf 'journal %p\n'
find /sys/fs/cgroup -name '*nspawn-*' -printf 'cgroup %p\n'
pgrep -fa 'systemd-nspawn|nomad-driver-nspawn' | sed 's/^[0-9]* /process /'
true
`

func (s *soak) inventory(ctx context.Context) ([]string, error) {
	cmd := s.agent.Host.Command(ctx, "sh", "-s") // by standard input, so that pgrep does not find it
	cmd.Stdin = strings.NewReader(takeInventory)
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("take inventory of the host: %w", err)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	slices.Sort(lines)
	return lines, nil
}
