package machine

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/godbus/dbus/v5"

	"nomad-driver-nspawn/nspawn/gate/inside"
)

// Describe returns what starting the machine asks of systemd: the command line, one
// argument per line, then the unit's properties, then the instructions that go through
// the gate and the parameters of the kernel. The text holds no secret: environment
// variables appear by name only.
func Describe(s Spec, h Host) string {
	var b strings.Builder
	for _, arg := range Argv(s, h) {
		fmt.Fprintf(&b, "%s\n", arg)
	}
	b.WriteString("\n")
	var lines []string
	for _, p := range Properties(s, h) {
		if p.Name != "ExecStart" && p.Name != "ExecStartEx" {
			lines = append(lines, fmt.Sprintf("%s=%s\n", p.Name, readable(p.Value)))
		}
	}
	slices.Sort(lines)
	b.WriteString(strings.Join(lines, ""))
	b.WriteString("\n" + describeInstructions(s.Instructions()))
	for _, name := range slices.Sorted(maps.Keys(s.Sysctls)) {
		fmt.Fprintf(&b, "set %s = %s\n", name, s.Sysctls[name])
	}
	return b.String()
}

func describeInstructions(todo inside.Instructions) string {
	var names []string
	for _, variable := range todo.Env {
		name, _, _ := strings.Cut(variable, "=")
		names = append(names, name)
	}
	what := "run"
	if todo.Init {
		what = "boot"
	}
	return fmt.Sprintf("%s %q\nin %q\nas %q\nwith %q\n", what, todo.Argv, todo.Dir, todo.User, names)
}

// readable formats a D-Bus value as text. A list of byte strings, which a variant would
// print as numbers, is printed as strings.
func readable(value dbus.Variant) string {
	if texts, ok := value.Value().([][]byte); ok {
		return fmt.Sprintf("%q", texts)
	}
	return value.String()
}
