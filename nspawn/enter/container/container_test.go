package container

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

func TestMain(m *testing.M) {
	if Called(os.Args) {
		Main()
	}
	os.Exit(m.Run())
}

func TestCandidates(t *testing.T) {
	must.Eq(t, []string{"/a/sh", "b/sh"}, candidates("sh", []string{"PATH=/a::b:"}))
	must.Eq(t, []string{"./sh"}, candidates("./sh", []string{"PATH=/a"}))
	must.Eq(t, nil, candidates("sh", nil))
}

// TestUserShim runs the shim as a payload's command line does, only outside of
// a container.
func TestUserShim(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("CI=true but not root")
		}
		t.Skip("SKIPPED: needs root")
	}
	script := `grep -E "^(Uid|Gid|Groups|CapEff|SigBlk):" /proc/self/status; echo $HOME,$USER,$A,$0,$1; ulimit -Sn; exit 7`
	code, stdout, stderr := userShim(t, "65533:65532", "--", "sh", "-c", script, "zero", "$HOME")
	must.EqOp(t, 7, code)
	must.EqOp(t, "", stderr)
	must.EqOp(t, strings.Join([]string{
		"Uid:\t65533\t65533\t65533\t65533", "Gid:\t65532\t65532\t65532\t65532", "Groups:\t ",
		"SigBlk:\t0000000000000000", "CapEff:\t0000000000000000", "/,,1,zero,$HOME", "",
	}, "\n"), stdout[:strings.LastIndex(strings.TrimSpace(stdout), "\n")+1])
	must.StrHasSuffix(t, "\n777\n", stdout)

	for _, test := range []struct {
		code   int
		stderr string
		args   []string
	}{
		{127, "nothing-such: not found\n", []string{"root", "--", "nothing-such"}},
		{126, "/etc: permission denied\n", []string{"root", "--", "/etc"}},
		{126, `find user "nemo": `, []string{"nemo", "--", "true"}},
		{126, "usage: ", []string{"root", "true"}},
		{126, "usage: ", []string{"root", "--"}},
		{126, "usage: ", nil},
	} {
		code, stdout, stderr := userShim(t, test.args...)
		must.EqOp(t, test.code, code)
		must.EqOp(t, "", stdout)
		must.StrHasPrefix(t, test.stderr, stderr)
	}
}

func userShim(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	cmd := exec.Command("sh", append([]string{"-c", `ulimit -Sn 777; exec "$0" "$@"`, "/proc/self/exe", UserArg}, args...)...)
	self, err := os.Executable()
	must.NoError(t, err)
	cmd.Args[3] = self
	cmd.Env = []string{"A=1", "PATH=/usr/bin:/bin"}
	var out, diag bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &diag
	_ = cmd.Run()
	return cmd.ProcessState.ExitCode(), out.String(), diag.String()
}

func TestStatic(t *testing.T) {
	static, err := Static()
	must.NoError(t, err)
	self, err := os.Executable()
	must.NoError(t, err)
	_, loader := exec.Command("ldd", self).Output() // fails for what is not dynamic
	must.EqOp(t, loader != nil, static)
}
