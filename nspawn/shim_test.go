package nspawn

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/nspawn/programs"
)

// In TestHostAttackShimOfTheHost root of a container without a user namespace makes the
// program writable with which the host starts systemd-nspawn. The container's own program
// is a copy.
func TestHostAttackShimOfTheHost(t *testing.T) {
	m := newManager(t)
	program, err := programs.Own(m.dirs.Pins())
	must.NoError(t, err)
	before, err := os.ReadFile(program)
	must.NoError(t, err)
	spec := newMachine(t, m, "f=/run/nomad-driver-nspawn/shim; mount -o remount,bind,rw $f && echo evil >$f && cat $f")
	spec.Root.UserNamespace = false
	out := mustStart(t, m, spec)
	must.Eq(t, Exit{}, mustWait(t, m, spec.Machine))
	must.NoError(t, m.Remove(t.Context(), spec.Machine))
	must.Eq(t, "evil\n", <-out.stdout, must.Sprint(<-out.stderr)) // so the attack works on the copy
	after, err := os.ReadFile(program)
	must.NoError(t, err)
	must.True(t, string(before) == string(after), must.Sprint(filepath.Base(program), " was changed"))
}
