package e2e

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

// covered are public reports of what other tests show already; report_test.go has those
// that only it shows.
var covered = []struct {
	from string // repository and number
	did  string // what the user did, and what was wrong
	test string
}{
	{"moby/moby#19203", "a user writes to /dev/stderr: permission denied", "testUsers"},
	{"moby/moby#6880", "the same, of an application that logs there", "testUsers"},
	{"hashicorp/nomad#11670", "the task's user is looked up on the client, not in the image", "testUsers"},
	{"NousResearch/hermes-agent#20539", "the job's HOME gives way to that of passwd", "testVariablesOfAnyName"},
	{"podman-container-tools/podman#1745", "the container's own name is not in /etc/hosts", "testNames"},
	{"containers/podman-compose#165", "the host name in /etc/hosts is another one", "testNames"},
	{"canonical/lxd#936", "tmux in an exec: the terminal is not one of the container", "testExecTTY"},
	{"lxc/lxc#1620", "programs ask for the name of their terminal and get none", "testExecTTY"},
	{"containerd/accelerated-container-image#251", "the capabilities of the image's ping are lost", "TestKindsAndAttributes"},
	{"slimtoolkit/slim#676", "the same, of an application", "TestKindsAndAttributes"},
	{"hashicorp/nomad#10317", "the plugin is started and ended several times before it is used", "TestHostContract"},
}

// TestReportsAreCovered checks that there are the tests that are said to cover a report.
func TestReportsAreCovered(t *testing.T) {
	var tests strings.Builder
	must.NoError(t, filepath.WalkDir("..", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		tests.Write(text)
		return err
	}))
	for _, report := range covered {
		must.StrContains(t, tests.String(), "\nfunc "+report.test+"(", must.Sprint(report))
	}
}
