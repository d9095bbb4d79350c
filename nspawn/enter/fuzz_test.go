package enter

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/nspawn/enter/container"
)

// FuzzLeaderName has leaders with any name: none looks less confined than it is.
func FuzzLeaderName(f *testing.F) {
	f.Add("systemd")
	f.Add("\nSeccomp:\t0")
	f.Add("Seccomp:0\\n")
	f.Fuzz(func(t *testing.T, name string) {
		name, _, _ = strings.Cut(name[:min(len(name), 15)], "\x00")
		escaped := strings.NewReplacer("\n", `\n`, `\`, `\\`).Replace(name)
		status := parseStatus(fmt.Sprintf("Name:\t%s\nPPid:\t7\nNSpid:\t9\t1\nCapBnd:\t00000000fdecbfff\nNoNewPrivs:\t1\nSeccomp:\t2\n", escaped))
		delete(status, "Name")
		must.Eq(t, map[string]string{"PPid": "7", "NSpid": "9\t1", "CapBnd": "00000000fdecbfff", "NoNewPrivs": "1", "Seccomp": "2"}, status)
	})
}

// FuzzReply receives whatever a shim may send.
func FuzzReply(f *testing.F) {
	f.Add([]byte(`{"Pid":1}`))
	f.Add([]byte(`{"Error":"x","Failure":"y","Code":127}`))
	f.Add([]byte(`{"Pid":-1,"Code":1e99}`))
	socket, replies, err := socketPair()
	must.NoError(f, err)
	f.Cleanup(func() { socket.Close(); replies.Close() })
	f.Fuzz(func(t *testing.T, message []byte) {
		if len(message) == 0 || len(message) > 64<<10 {
			return
		}
		if _, err := replies.Write(message); err != nil {
			t.Skip(err)
		}
		reply, terminal, err := (&shim{socket: socket}).receive()
		must.Nil(t, terminal)
		if err == nil && !json.Valid(message) {
			t.Errorf("%q is taken for %+v", message, reply)
		}
	})
}

// FuzzInstructions hands a command with any texts over to the shim.
func FuzzInstructions(f *testing.F) {
	f.Add("a", "A=b", "/", "root")
	f.Add("\x00\n\"\\", "=\u2028", "<>&", "\u00e9:")
	file, err := memfd("instructions", 0)
	must.NoError(f, err)
	f.Cleanup(func() { file.Close() })
	f.Fuzz(func(t *testing.T, arg, variable, dir, user string) {
		valid := func(text string) string { return strings.ToValidUTF8(text, "") } // Nomad has them in protobuf messages
		want := container.Instructions{Argv: []string{valid(arg), ""}, Env: []string{valid(variable)}, Dir: valid(dir), User: valid(user)}
		must.NoError(t, file.Truncate(0))
		_, err := file.Seek(0, io.SeekStart)
		must.NoError(t, err)
		must.NoError(t, writeJSON(file, &want))
		var got container.Instructions
		must.NoError(t, json.NewDecoder(file).Decode(&got))
		must.Eq(t, want, got)
	})
}
