package operator

import (
	"os"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/nspawn/machine"
)

// TestReadmeSysctls checks that README has all parameters that every job may set, and no
// more.
func TestReadmeSysctls(t *testing.T) {
	text, err := os.ReadFile("../../README.md")
	must.NoError(t, err)
	_, section, _ := strings.Cut(string(text), "\n##### Parameters of the kernel\n")
	section, _, found := strings.Cut(section, "\n\nValues of ")
	must.True(t, found)
	listed, prefix := map[string]bool{}, ""
	for i, word := range strings.Split(section, "`") {
		if i%2 == 0 || word == "sysctl" {
			continue
		}
		if dot := strings.LastIndexByte(word, '.'); dot >= 0 {
			prefix = word[:dot+1]
		} else {
			word = prefix + word
		}
		listed[word] = true
	}
	for name, value := range safeSysctls {
		must.NoError(t, machine.CheckSysctl(name, "1"))
		must.Positive(t, value.count)
		must.True(t, listed[name], must.Sprint(name))
		delete(listed, name)
	}
	must.Eq(t, map[string]bool{}, listed)
}

func TestNumbers(t *testing.T) {
	three := numbers{3, 100}
	for _, good := range []string{"1 2 3", "0\t100  7", " 1 2 3 "} {
		must.NoError(t, three.check(good), must.Sprint(good))
	}
	for _, bad := range []string{"", "1", "1 2", "1 2 3 4", "1 2 101", "1 2 -3", "1 2 +3", "1 2 03", "1 2 0x3", "1 2 x", "1 2 99999999999999999999"} {
		must.ErrorContains(t, three.check(bad), "want 3 numbers of 0 to 100, not", must.Sprint(bad))
	}
	must.ErrorContains(t, numbers{1, 1}.check("2"), `want a number of 0 to 1, not "2"`)
}
