package machine

import (
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/nspawn/gate/inside"
)

func TestArgvByVersion(t *testing.T) {
	const option = "--restrict-address-families="
	args := func(version int) []string {
		return Argv(Spec{Machine: "m", Command: []string{"/bin/true"}}, Host{Nspawn: "systemd-nspawn", Version: version})
	}
	must.SliceNotContains(t, args(260), option) // unknown there
	must.SliceContains(t, args(261), option)
}

// TestArgvHasNoCommand checks that nothing of the job's command is an argument of nspawn.
func TestArgvHasNoCommand(t *testing.T) {
	args := Argv(Spec{Machine: "m", Command: []string{"--bind=/", "x"}, User: "u", WorkingDirectory: "/w"}, Host{})
	must.Eq(t, []string{"--", inside.ShimPath, inside.GateArg}, args[len(args)-3:])
	must.Eq(t, Argv(Spec{Machine: "m"}, Host{}), args)
}

func TestInstructions(t *testing.T) {
	must.Eq(t, inside.Instructions{Argv: []string{"x", "$y"}, Env: []string{"A=1", "a.b-c=2=3"}, Dir: "w", User: "u:1"},
		Spec{Mode: ProcessOne, Command: []string{"x", "$y"}, Environment: map[string]string{"a.b-c": "2=3", "A": "1"}, WorkingDirectory: "w", User: "u:1"}.Instructions())
	must.Eq(t, inside.Instructions{Init: true, Argv: []string{"--unit=x"}, Env: []string{"TERM=dumb"}}, Spec{Mode: Boot, Command: []string{"--unit=x"}}.Instructions())
	must.Eq(t, []string{"TERM=xterm"}, Spec{Mode: Boot, Environment: map[string]string{"TERM": "xterm"}}.Instructions().Env)
}

func TestSpecHidesNoSecretInProperties(t *testing.T) {
	spec := Spec{Machine: "m", Environment: map[string]string{"TOKEN": "the-secret"}, Command: []string{"x"}}
	must.False(t, strings.Contains(Describe(spec, Host{Version: 262}), "the-secret"))
}
