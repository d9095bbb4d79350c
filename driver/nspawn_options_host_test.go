package driver

import (
	"compress/gzip"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/e2e/host/hosttest"
	"nomad-driver-nspawn/nspawn"
)

// TestHostNspawnOptions holds README's table of systemd-nspawn's options against this
// systemd: what its help and its manual name is in the table, and what is in the table
// for this version is known to it.
func TestHostNspawnOptions(t *testing.T) {
	hosttest.Require(t)
	output, err := exec.Command("systemd-nspawn", "--version").Output()
	must.NoError(t, err)
	version, err := strconv.Atoi(captured(`^systemd (\d+)`, string(output))[0])
	must.NoError(t, err)
	documented := map[string]bool{}
	for _, option := range nspawnOptions(t) {
		documented[option.name] = true
		from := nspawn.MinVersion
		if option.from != "" {
			from, err = strconv.Atoi(option.from)
			must.NoError(t, err)
		}
		if version >= from {
			must.True(t, isKnown(option.name), must.Sprintf("README has %s, which systemd-nspawn %d does not know", option.name, version))
		}
	}
	must.False(t, isKnown("--no-such-option"))
	help, err := exec.Command("systemd-nspawn", "--help").Output()
	must.NoError(t, err)
	for _, text := range []struct{ of, pattern, content string }{
		{"help", `(?m)^  (?:   |-\w )(--[a-z0-9-]+)`, string(help)},
		{"manual", `\n\.PP\n(?:\\fB-\w\\fR, )?\\fB(--[a-z0-9-]+)`, manual(t)},
	} {
		options := captured(text.pattern, text.content)
		must.SliceContainsSubset(t, options, []string{"--boot", "--settings"})
		for _, option := range options {
			must.MapContainsKey(t, documented, option, must.Sprintf("README lacks %s of the %s of systemd-nspawn %d", option, text.of, version))
		}
	}
}

// isKnown reports whether systemd-nspawn takes an option. With a wrong argument before
// --help it does nothing else.
func isKnown(option string) bool {
	output, _ := exec.Command("systemd-nspawn", option+"=", "--help").CombinedOutput()
	return !strings.Contains(string(output), "unrecognized option")
}

// manual is the page of systemd-nspawn(1), with plain dashes, up to its options' end.
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
