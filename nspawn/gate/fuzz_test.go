package gate

import (
	"context"
	"encoding/json"
	"net"
	"os"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/gate/inside"
)

// FuzzVisitor reads whatever a process of the container may send to the gate: as a hello,
// and as an answer to its instructions.
func FuzzVisitor(f *testing.F) {
	f.Add([]byte(`{"Version":1}`))
	f.Add([]byte(`{"Version":1}{"Version":1}`))
	f.Add([]byte(`{"Code":127,"Reason":"x: not found","Again":true}`))
	f.Add([]byte(`{"Reason":"` + "\x1b[2J\xff" + `"`))
	f.Add([]byte("[[[[[[[[[[[["))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > inside.MaxFailure+100 {
			return
		}
		var hello inside.Hello
		if err := readFrom(t, data, maxHello, &hello); err == nil && (len(data) > maxHello || !json.Valid(data)) {
			t.Errorf("%q is taken for %+v", data, hello)
		}
		var failure inside.Failure
		if err := readFrom(t, data, inside.MaxFailure, &failure); err == nil && (len(data) > inside.MaxFailure || !json.Valid(data)) {
			t.Errorf("%q is taken for %+v", data, failure)
		}
	})
}

// readFrom reads what a visitor sent that has gone since.
func readFrom(t *testing.T, data []byte, size int64, value any) error {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	must.NoError(t, err)
	file := os.NewFile(uintptr(ends[0]), "visitor")
	conn, err := net.FileConn(file)
	must.NoError(t, err)
	file.Close()
	defer conn.Close()
	if len(data) > 0 {
		_, err = unix.Write(ends[1], data)
		must.NoError(t, err)
	}
	must.NoError(t, unix.Close(ends[1]))
	visitor := &Visitor{conn: conn.(*net.UnixConn)}
	return visitor.read(context.Background(), 10*time.Second, size, value)
}
