package machine

import (
	"slices"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

func TestArgvByVersion(t *testing.T) {
	const option = "--restrict-address-families="
	args := func(version int) []string {
		return Argv(Spec{Machine: "m", Command: []string{"/bin/true"}}, Host{Nspawn: "systemd-nspawn", Version: version})
	}
	must.SliceNotContains(t, args(260), option) // unknown there
	must.SliceContains(t, args(261), option)
}

// A command that begins with a dash must not become an option of nspawn.
func TestArgvEndsOptionsBeforeCommand(t *testing.T) {
	args := Argv(Spec{Machine: "m", Command: []string{"--bind=/", "x"}}, Host{})
	must.Eq(t, []string{"--", "--bind=/", "x"}, args[len(args)-3:])
	must.Eq(t, slices.Index(args, "--"), len(args)-3)
}

func TestSpecHidesNoSecretInProperties(t *testing.T) {
	spec := Spec{Machine: "m", Environment: map[string]string{"TOKEN": "the-secret"}, Command: []string{"x"}}
	must.False(t, strings.Contains(Describe(spec, Host{Version: 262}), "the-secret"))
}
