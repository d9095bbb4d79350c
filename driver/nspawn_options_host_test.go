package driver

import (
	"compress/gzip"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/e2e/host/hosttest"
	"nomad-driver-nspawn/nspawn"
)

// TestHostNspawnOptions compares README's table of systemd-nspawn's options with this
// systemd. The table has every option of the help and of the manual, with the
// version that first accepts it, and systemd-nspawn accepts every option that the table
// has for its version.
func TestHostNspawnOptions(t *testing.T) {
	hosttest.Require(t)
	output, err := exec.Command("systemd-nspawn", "--version").Output()
	must.NoError(t, err)
	version, err := strconv.Atoi(captured(`^systemd (\d+)`, string(output))[0])
	must.NoError(t, err)
	from := map[string]int{}
	for _, option := range nspawnOptions(t) {
		from[option.name] = nspawn.MinVersion
		if option.from != "" {
			from[option.name], err = strconv.Atoi(option.from)
			must.NoError(t, err)
		}
		if version >= from[option.name] {
			must.True(t, isKnown(option.name), must.Sprintf("README has %s, which systemd-nspawn %d does not know", option.name, version))
		}
	}
	must.False(t, isKnown("--no-such-option"))
	help, err := exec.Command("systemd-nspawn", "--help").Output()
	must.NoError(t, err)
	manual := manual(t)
	for _, text := range []struct{ of, pattern, content string }{
		{"help", `(?m)^  (?:   |-\w )(--[a-z0-9-]+)`, string(help)},
		{"manual", `\n\.PP\n` + manualOption, manual},
	} {
		options := captured(text.pattern, text.content)
		must.SliceContainsSubset(t, options, []string{"--boot", "--settings"})
		for _, option := range options {
			must.MapContainsKey(t, from, option, must.Sprintf("README lacks %s of the %s of systemd-nspawn %d", option, text.of, version))
			// The help of 257 names --bind-user-shell, which only 258 knows.
			must.True(t, from[option] <= version || !isKnown(option),
				must.Sprintf("README has %s from %d, but systemd-nspawn %d knows it, by its %s", option, from[option], version, text.of))
		}
	}
	for option, added := range addedVersions(t, manual) {
		must.EqOp(t, max(added, nspawn.MinVersion), from[option], must.Sprintf("README's From of %s", option))
	}
}

// manualOption matches the beginning of an option's paragraph in the manual.
const manualOption = `(?:\\fB-\w\\fR, )?\\fB(--[a-z0-9-]+)`

// addedVersions returns the versions that the manual says the options were added in. The
// manual of 252 does not say so.
func addedVersions(t *testing.T, manual string) map[string]int {
	added := map[string]int{}
	for _, paragraph := range strings.Split(manual, "\n.PP\n") {
		option := regexp.MustCompile("^" + manualOption).FindStringSubmatch(paragraph)
		version := captured(`Added in version (\d+)`, paragraph)
		if option != nil && len(version) > 0 {
			number, err := strconv.Atoi(version[len(version)-1])
			must.NoError(t, err)
			added[option[1]] = number
		}
	}
	if added["--cleanup"] == 257 {
		added["--cleanup"] = 258 // the manual is wrong: systemd-nspawn 257 does not know it
	}
	return added
}

// isKnown reports whether systemd-nspawn accepts an option. The value is wrong for most
// options, and --help comes next, so systemd-nspawn does nothing else.
func isKnown(option string) bool {
	output, _ := exec.Command("systemd-nspawn", option+"=", "--help").CombinedOutput()
	return !strings.Contains(string(output), "unrecognized option")
}

// manual returns the page systemd-nspawn(1) up to the end of its options, with plain dashes.
func manual(t *testing.T) string {
	file, err := os.Open("/usr/share/man/man1/systemd-nspawn.1.gz")
	must.NoError(t, err)
	defer file.Close()
	page, err := gzip.NewReader(file)
	must.NoError(t, err)
	text, err := io.ReadAll(page)
	must.NoError(t, err)
	options, _, found := strings.Cut(strings.ReplaceAll(string(text), `\-`, "-"), `.SH "ENVIRONMENT"`)
	must.True(t, found)
	return options
}
