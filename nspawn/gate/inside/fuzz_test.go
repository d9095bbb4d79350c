package inside

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

// FuzzInstructions hands a payload with any texts over to the shim: the command and the
// environment are the same there.
func FuzzInstructions(f *testing.F) {
	f.Add("sh", "A=b", "/", "app:app")
	f.Add("\x00\n\"\\", "a.b-c==\u2028", "<>&", "\u00e9:")
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must.NoError(f, err)
	f.Cleanup(func() { unix.Close(ends[0]); unix.Close(ends[1]) })
	f.Fuzz(func(t *testing.T, arg, variable, dir, user string) {
		valid := func(text string) string { return strings.ToValidUTF8(text[:min(len(text), 4096)], "") } // as the config of a job is
		want := Instructions{Argv: []string{valid(arg), ""}, Env: []string{valid(variable)}, Dir: valid(dir), User: valid(user)}
		message, err := json.Marshal(want)
		must.NoError(t, err)
		must.NoError(t, send(ends[0], message))
		got, err := exchange(ends[1])
		must.NoError(t, err)
		must.Eq(t, want, *got)
		var hello Hello
		must.NoError(t, json.NewDecoder(stream(ends[0])).Decode(&hello))
		must.Eq(t, Version, hello.Version)
	})
}

// FuzzExplain explains why a file of an image, whatever is in it, cannot be executed.
func FuzzExplain(f *testing.F) {
	f.Add([]byte("#!/bin/none -x\n"))
	f.Add([]byte("#! \r\n"))
	self, err := os.ReadFile("/proc/self/exe")
	must.NoError(f, err)
	f.Add(self[:4096])
	f.Add([]byte("\x7fELF\x02\x01\x01"))
	name := filepath.Join(f.TempDir(), "command")
	f.Fuzz(func(t *testing.T, content []byte) {
		must.NoError(t, os.WriteFile(name, content, 0o755))
		for _, errno := range []unix.Errno{unix.ENOENT, unix.ENOEXEC, unix.EACCES} {
			failure := explain(name, []string{name}, errno, nil)
			if failure.Code == 0 || !strings.HasPrefix(failure.Reason, name) {
				t.Errorf("%+v", failure)
			}
			if len(failure.Reason) > len(name)+10*maxInterpreter {
				t.Errorf("a reason of %d bytes", len(failure.Reason))
			}
		}
	})
}
