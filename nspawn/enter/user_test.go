package enter

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

// container returns a root directory with the files.
func container(t testing.TB, passwd, group string) string {
	t.Helper()
	root := t.TempDir()
	must.NoError(t, os.Mkdir(filepath.Join(root, "etc"), 0o755))
	must.NoError(t, os.WriteFile(filepath.Join(root, "etc/passwd"), []byte(passwd), 0o644))
	must.NoError(t, os.WriteFile(filepath.Join(root, "etc/group"), []byte(group), 0o644))
	return root
}

func TestLookup(t *testing.T) {
	root := container(t, `# comment
root:x:0:0:root:/root:/bin/sh

+nis::::::
broken:x:none:0::/:
short:x:12
app:x:1000:1001:App:/home/app:/bin/sh
1234:x:77:77::/odd:
  padded:x:88:89::relative:
app:x:2000:2000:the first counts:/:
`, `root:x:0:
wheel:x:10:root,app
app:x:1001:
video:x:44:other,app
tail:x:11:apple,appl
video:x:44:app
bad:x:x:app
`)
	for user, want := range map[string]identity{
		"":          {0, 0, []int{10}, "root", "/root"},
		"root":      {0, 0, []int{10}, "root", "/root"},
		"app":       {1000, 1001, []int{10, 44}, "app", "/home/app"},
		"1000":      {1000, 1001, []int{10, 44}, "app", "/home/app"},
		"app:video": {1000, 44, nil, "app", "/home/app"},
		"app:4711":  {1000, 4711, nil, "app", "/home/app"},
		":wheel":    {0, 10, nil, "root", "/root"},
		"1234":      {1234, 0, nil, "", "/"}, // a number, not the user so named
		"4711:44":   {4711, 44, nil, "", "/"},
		"padded":    {88, 89, nil, "padded", "/"},
	} {
		who, err := lookup(root, user)
		must.NoError(t, err, must.Sprint(user))
		must.EqOp(t, fmt.Sprintf("%+v", want), fmt.Sprintf("%+v", who), must.Sprint(user))
	}
	for _, user := range []string{"nemo", "broken", "short", "+nis", "+1", "-1", "app:", ":", "app:nemo", "app:bad", "2147483648", "app:2147483648", " app"} {
		_, err := lookup(root, user)
		must.ErrorContains(t, err, "find ", must.Sprint(user))
	}
}

func TestLookupWithoutFiles(t *testing.T) {
	who, err := lookup(t.TempDir(), "5:6")
	must.NoError(t, err)
	must.EqOp(t, "{uid:5 gid:6 groups:[] name: home:/}", fmt.Sprintf("%+v", who))
	_, err = lookup(t.TempDir(), "app")
	must.ErrorContains(t, err, `find user "app"`)
}

func TestLookupLargeFile(t *testing.T) {
	root := container(t, strings.Repeat(strings.Repeat("x", 1000)+"\n", maxDatabase/1000), "")
	_, err := lookup(root, "app")
	must.ErrorContains(t, err, "larger than")
	root = container(t, strings.Repeat("x", 2<<20), "")
	_, err = lookup(root, "app")
	must.ErrorContains(t, err, "token too long")
}

func FuzzLookup(f *testing.F) {
	f.Add("root:x:0:0:root:/root:/bin/sh\napp:x:1:2:::\n", "wheel:x:10:root,app\n", "app:wheel")
	f.Add("a:::", "a:x:999999999999:", "1:a")
	f.Fuzz(func(t *testing.T, passwd, group, user string) {
		root := container(t, passwd, group)
		who, err := lookup(root, user)
		if err != nil {
			must.NotEq(t, "", err.Error())
			return
		}
		for _, id := range append(who.groups, who.uid, who.gid) {
			must.Between(t, 0, id, maxID)
		}
		must.True(t, filepath.IsAbs(who.home))
		if user == "" && strings.HasPrefix(passwd, "root:x:0:0:") {
			must.EqOp(t, 0, who.uid)
		}
		// The number found must lead back to the same user.
		if who.name != "" && !strings.Contains(user, ":") {
			_, err := lookup(root, who.name)
			must.NoError(t, err)
		}
	})
}

func TestEnvironment(t *testing.T) {
	app := identity{name: "app", home: "/home/app"}
	must.Eq(t, []string{"A=1", "HOME=/home/app", "PATH=" + defaultPath, "USER=app", "LOGNAME=app"}, app.environment([]string{"A=1"}))
	given := []string{"HOME=", "PATH=/x", "USER=u", "LOGNAME=l"}
	must.Eq(t, given, app.environment(given))
	must.Eq(t, []string{"HOME=/", "PATH=" + defaultPath}, identity{home: "/"}.environment(nil))
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
