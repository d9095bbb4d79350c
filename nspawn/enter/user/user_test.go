package user

import (
	"fmt"
	"os"
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
	for user, want := range map[string]Identity{
		"":          {0, 0, []int{10}, "root", "/root"},
		"root":      {0, 0, []int{10}, "root", "/root"},
		"app":       {1000, 1001, []int{10, 44}, "app", "/home/app"},
		"1000":      {1000, 1001, []int{10, 44}, "app", "/home/app"},
		"app:video": {1000, 44, nil, "app", "/home/app"},
		"app:4711":  {1000, 4711, nil, "app", "/home/app"},
		":wheel":    {0, 10, nil, "root", "/root"},
		"1234":      {1234, 0, nil, "", "/"}, // a number, not the user of that name
		"4711:44":   {4711, 44, nil, "", "/"},
		"padded":    {88, 89, nil, "padded", "/"},
	} {
		who, err := Lookup(root, user)
		must.NoError(t, err, must.Sprint(user))
		must.EqOp(t, fmt.Sprintf("%+v", want), fmt.Sprintf("%+v", who), must.Sprint(user))
	}
	for _, user := range []string{"nemo", "broken", "short", "+nis", "+1", "-1", "app:", ":", "app:nemo", "app:bad", "2147483648", "app:2147483648", " app"} {
		_, err := Lookup(root, user)
		must.ErrorContains(t, err, "find ", must.Sprint(user))
	}
}

func TestLookupWithoutFiles(t *testing.T) {
	who, err := Lookup(t.TempDir(), "5:6")
	must.NoError(t, err)
	must.EqOp(t, "{UID:5 GID:6 Groups:[] Name: Home:/}", fmt.Sprintf("%+v", who))
	_, err = Lookup(t.TempDir(), "app")
	must.ErrorContains(t, err, `find user "app"`)
}

func TestLookupLargeFile(t *testing.T) {
	root := container(t, strings.Repeat(strings.Repeat("x", 1000)+"\n", maxDatabase/1000), "")
	_, err := Lookup(root, "app")
	must.ErrorContains(t, err, "larger than")
	root = container(t, strings.Repeat("x", 2<<20), "")
	_, err = Lookup(root, "app")
	must.ErrorContains(t, err, "token too long")
}

func FuzzLookup(f *testing.F) {
	f.Add("root:x:0:0:root:/root:/bin/sh\napp:x:1:2:::\n", "wheel:x:10:root,app\n", "app:wheel")
	f.Add("a:::", "a:x:999999999999:", "1:a")
	f.Fuzz(func(t *testing.T, passwd, group, user string) {
		root := container(t, passwd, group)
		who, err := Lookup(root, user)
		if err != nil {
			must.NotEq(t, "", err.Error())
			return
		}
		for _, id := range append(who.Groups, who.UID, who.GID) {
			must.Between(t, 0, id, maxID)
		}
		must.True(t, filepath.IsAbs(who.Home))
		if user == "" && strings.HasPrefix(passwd, "root:x:0:0:") {
			must.EqOp(t, 0, who.UID)
		}
		// The number that was found must lead back to the same user.
		if who.Name != "" && !strings.Contains(user, ":") {
			_, err := Lookup(root, who.Name)
			must.NoError(t, err)
		}
	})
}

func TestEnvironment(t *testing.T) {
	app := Identity{Name: "app", Home: "/home/app"}
	must.Eq(t, []string{"A=1", "HOME=/home/app", "PATH=" + defaultPath, "USER=app", "LOGNAME=app"}, app.Environment([]string{"A=1"}))
	given := []string{"HOME=", "PATH=/x", "USER=u", "LOGNAME=l"}
	must.Eq(t, given, app.Environment(given))
	must.Eq(t, []string{"HOME=/", "PATH=" + defaultPath}, Identity{Home: "/"}.Environment(nil))
}
