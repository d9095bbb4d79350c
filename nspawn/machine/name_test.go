package machine

import (
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

const alloc = "2e0a7b7c-6a8f-4f1e-9d0c-5b1f4c3d2e1f"

func TestName(t *testing.T) {
	for _, c := range []struct{ task, want string }{
		{"web", "web-" + alloc},
		{"Web-1", "Web-1-" + alloc},
		{"exactly-twenty-seven-chars1", "exactly-twenty-seven-chars1-" + alloc},
		{"one-more-than-twenty-seven-1", "one-more-than-twen-35d6fb48-" + alloc},
		{"web_api", "web-api-e20da713-" + alloc},
		{"web.api", "web-api-0454f394-" + alloc},
		{"-", "1897e302-" + alloc},
		{"ünïcode", "n-code-e7369a21-" + alloc},
	} {
		must.Eq(t, c.want, Name(alloc, c.task))
	}
}

func FuzzName(f *testing.F) {
	f.Add(alloc, "web_api", "web-api")
	f.Add("", "", " ")
	f.Add(strings.Repeat("a", 90), "x", "y")
	f.Fuzz(func(t *testing.T, alloc, task, other string) {
		name := Name(alloc, task)
		if len(name) > maxName || !machineName.MatchString(name) {
			t.Fatalf("Name(%q, %q) = %q is not a host name", alloc, task, name)
		}
		if task != other && name == Name(alloc, other) {
			t.Fatalf("tasks %q and %q of one allocation are both %q", task, other, name)
		}
		machine, ok := OfUnit(UnitName(name))
		must.True(t, ok)
		must.Eq(t, name, machine)
	})
}

func TestOfUnitOfOthers(t *testing.T) {
	for _, unit := range []string{"ssh.service", "nomad-nspawn-web.scope", "nomad.service"} {
		_, ok := OfUnit(unit)
		must.False(t, ok, must.Sprint(unit))
	}
}
