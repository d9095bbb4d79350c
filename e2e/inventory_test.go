//go:build e2e

package e2e

import (
	"context"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/e2e/agent"
)

// takeInventory lists everything that a task could leave on the host, one item per line.
// It leaves out the empty directories, tables and slices that are made once and kept.
const takeInventory = `
systemctl list-units --all --plain --no-legend 'nomad-nspawn-*' '*.scope' | sed 's/^/unit /; s/ *loaded.*//'
find /run/systemd/transient -name '*nspawn*' -printf 'unit file %p\n'
machinectl list --no-legend | sed 's/^/machine /'
find /run/systemd/machines -mindepth 1 -printf 'machine file %p\n'
cut -d ' ' -f 5 /proc/self/mountinfo | sed 's/^/mount /'
find /run/netns -mindepth 1 -printf 'netns %p\n'
ip -oneline link | sed 's/^[0-9]*: \([^:@]*\).*/link \1/'
nft list ruleset | grep -o 'comment "[^"]*"' | sed 's/^/firewall /'
find /run/nomad-driver-nspawn /var/lib/nomad-driver-nspawn -mindepth 2 -not '(' -path '*/images/*' -type d -empty ')' -printf 'file %p %l\n'
find /run/systemd/nspawn* -mindepth 2 -maxdepth 2 -printf 'nspawn %p\n'
find /var/lib/machines -mindepth 1 -maxdepth 1 -printf 'image %p\n'
find /var/log/journal -type l -printf 'journal %p\n'
find /sys/fs/cgroup -name '*nspawn-*' -printf 'cgroup %p\n'
find /var/lib/nomad/alloc -mindepth 1 -maxdepth 1 -printf 'allocation %p\n'
pgrep -fa 'systemd-nspawn|nomad logmon|nomad-driver-nspawn' | sed 's/^[0-9]* /process /'
true
`

func inventory(t *testing.T, a *agent.Agent) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	// The script goes through standard input, so that pgrep does not find it.
	cmd := a.Host.Command(ctx, "sh", "-s")
	cmd.Stdin = strings.NewReader(takeInventory)
	out, err := cmd.Output()
	must.NoError(t, err)
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	slices.Sort(lines)
	return lines
}

// gone checks that the host has nothing of an allocation that has ended, except what
// belongs to Nomad: its directory, with mounts for secrets, and its network.
func (l *lab) gone(al *agent.Alloc) {
	l.Helper()
	left := []string{}
	for _, line := range inventory(l.T, l.agent) {
		if strings.Contains(line, al.ID) && !nomads.MatchString(line) {
			left = append(left, line)
		}
	}
	must.Eq(l, []string{}, left)
}

var nomads = regexp.MustCompile(`^(allocation|netns|mount /var/lib/nomad/alloc|mount /run/netns|process .*nomad logmon)`)

var (
	logTime = regexp.MustCompile(`^\S+ `)
	logIDs  = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f-]{27,}\S*|[0-9.]+(µ|m)?s\b|[0-9]+`)
)

// testQuietLog checks that no warning or error is repeated again and again.
func testQuietLog(l *lab) {
	text, err := l.agent.Log(l.ctx)
	must.NoError(l, err)
	count := map[string]int{}
	for line := range strings.Lines(text) {
		if strings.Contains(line, "[WARN]") || strings.Contains(line, "[ERROR]") {
			if strings.Contains(line, "nspawn") || strings.Contains(line, "stats") {
				count[logIDs.ReplaceAllString(logTime.ReplaceAllString(line, ""), "#")]++
			}
		}
	}
	for line, times := range count {
		must.Less(l, 10, times, must.Sprintf("logged %d times: %s", times, line))
	}
}
