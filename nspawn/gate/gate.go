// Package gate holds a machine's payload back until the plugin has finished the container
// from outside, and then tells it what to run.
//
// systemd-nspawn runs the shim (package inside) as the payload. Two paths are bound into
// the machine for it, read-only: the program of the shim, and the gate, a directory of
// the machine with a socket on which the plugin listens.
//
//	shim                        plugin
//	connects, sends hello  ──▶  checks the peer, finishes the container
//	                       ◀──  sends instructions: with them the payload begins
//	execve(2)              ──▶  end of file: the payload has begun
//	                            or a failure: the reason why there is no payload
//
// A shim that finds no plugin waits for one. So while the plugin is away, a start or the
// reboot of a guest is delayed, but the task does not end.
//
// The payload can see the directory as well, and could connect. Therefore a gate admits
// one visitor and then closes, and the caller checks the visitor's identity.
package gate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/gate/inside"
)

// Gate is a socket to which the shim of a machine connects.
type Gate struct {
	listener *net.UnixListener
	path     string
	closing  sync.Once
}

// Make creates the gate's directory.
func Make(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make the gate: %w", err)
	}
	// The container must be able to read it, whatever our umask is.
	if err := os.Chmod(dir, 0o755); err != nil {
		return fmt.Errorf("make the gate: %w", err)
	}
	return nil
}

// Listen opens the gate in the directory. It replaces the socket of an earlier plugin.
func Listen(dir string) (*Gate, error) {
	path := filepath.Join(dir, inside.Socket)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("open the gate: %w", err)
	}
	// The socket gets its final name last: from then on the shim may connect to it.
	hidden := filepath.Join(dir, "."+inside.Socket)
	if err := os.Remove(hidden); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("open the gate: %w", err)
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: hidden, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("open the gate: %w", err)
	}
	listener.SetUnlinkOnClose(false)
	g := &Gate{listener: listener, path: path}
	if err := errors.Join(os.Chmod(hidden, 0o666), os.Rename(hidden, path)); err != nil {
		g.Close()
		return nil, fmt.Errorf("open the gate: %w", err)
	}
	return g, nil
}

// Close stops listening: when it returns, nobody does, also if another call has begun to
// close the gate. It does not remove the socket, because another plugin may have replaced
// it already (see Listen).
func (g *Gate) Close() { g.closing.Do(func() { g.listener.Close() }) }

// Peer identifies a connected process by its IDs on the host.
type Peer struct {
	PID, UID int
}

// helloTimeout limits how long a visitor may take to send its hello. The shim sends it at
// once.
const helloTimeout = 5 * time.Second

// Await returns the first visitor that has sent a hello and for which admit returns nil.
// Then it closes the gate.
func (g *Gate) Await(ctx context.Context, admit func(Peer) error) (*Visitor, error) {
	defer g.Close()
	defer context.AfterFunc(ctx, func() { g.Close() })()
	for {
		conn, err := g.listener.AcceptUnix()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		if err != nil {
			return nil, fmt.Errorf("wait at the gate: %w", err)
		}
		visitor, err := receive(ctx, conn, admit)
		if err == nil {
			return visitor, nil
		}
		conn.Close()
	}
}

// receive checks a visitor. It looks last whether the connection is still open: a process
// ID cannot have been reused in between, because the connection ends with its process.
func receive(ctx context.Context, conn *net.UnixConn, admit func(Peer) error) (*Visitor, error) {
	peer, err := credentials(conn)
	if err != nil {
		return nil, err
	}
	v := &Visitor{Peer: peer, conn: conn}
	if err := v.read(ctx, helloTimeout, maxHello, &v.hello); err != nil {
		return nil, err
	}
	if err := admit(peer); err != nil {
		return nil, err
	}
	return v, v.checkOpen()
}

func credentials(conn *net.UnixConn) (peer Peer, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return peer, err
	}
	var ucred *unix.Ucred
	controlErr := raw.Control(func(fd uintptr) {
		ucred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err := errors.Join(controlErr, err); err != nil {
		return peer, fmt.Errorf("identify the process at the gate: %w", err)
	}
	return Peer{PID: int(ucred.Pid), UID: int(ucred.Uid)}, nil
}

// Visitor is a shim that waits at the gate for its instructions.
type Visitor struct {
	Peer
	hello inside.Hello
	conn  *net.UnixConn
}

// maxHello is the largest size of a hello in bytes.
const maxHello = 4 << 10

// read reads one JSON value from the container, which may send anything or nothing.
func (v *Visitor) read(ctx context.Context, timeout time.Duration, size int64, value any) error {
	release := v.setDeadline(ctx, timeout)
	defer release()
	decoder := json.NewDecoder(io.LimitReader(v.conn, size))
	if err := decoder.Decode(value); err != nil {
		return err
	}
	if rest, _ := io.ReadAll(decoder.Buffered()); len(rest) > 0 {
		return errors.New("the process at the gate sent more than one message")
	}
	return nil
}

// setDeadline ends reads and writes after the timeout, and when ctx ends. The caller
// calls release afterwards.
func (v *Visitor) setDeadline(ctx context.Context, timeout time.Duration) (release func()) {
	_ = v.conn.SetDeadline(time.Now().Add(timeout)) // fails only on a closed connection, as the read or write does
	stop := context.AfterFunc(ctx, func() { _ = v.conn.SetDeadline(time.Unix(1, 0)) })
	return func() { stop() }
}

// checkOpen returns an error if the visitor has disconnected, or has sent more than the
// shim does.
func (v *Visitor) checkOpen() error {
	raw, err := v.conn.SyscallConn()
	if err != nil {
		return err
	}
	var n int
	controlErr := raw.Control(func(fd uintptr) {
		n, _, err = unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
	})
	switch {
	case controlErr != nil:
		return controlErr
	case errors.Is(err, unix.EAGAIN):
		return nil
	case err != nil:
		return fmt.Errorf("the shim has disconnected from the gate: %w", err)
	case n == 0:
		return errors.New("the shim has disconnected from the gate")
	}
	return errors.New("the process at the gate is not the shim: it sent more than a hello")
}

// Close ends the connection. A shim without instructions then waits for another plugin.
func (v *Visitor) Close() { v.conn.Close() }

// Timeouts of the last two steps. A shim that takes longer hangs in the kernel, for
// example on a network file system that does not respond.
const (
	sendTimeout  = 30 * time.Second
	beginTimeout = 30 * time.Second
)

// Open sends the instructions. It returns nil when the payload has begun, an
// *inside.Failure if the payload could not be executed, and another error if the shim
// ended before that.
//
// It also returns nil if no answer arrives in time or ctx ends after the instructions
// were sent: the payload may have begun, and must not be started a second time.
func (v *Visitor) Open(ctx context.Context, todo inside.Instructions) error {
	defer v.Close()
	message, err := json.Marshal(todo)
	if err != nil {
		return fmt.Errorf("encode the instructions: %w", err)
	}
	release := v.setDeadline(ctx, sendTimeout)
	_, err = v.conn.Write(message)
	release()
	if err != nil {
		// The shim ignores instructions that are cut off.
		return fmt.Errorf("send the instructions to the shim: %w", err)
	}
	failure := new(inside.Failure)
	err = v.read(ctx, beginTimeout, inside.MaxFailure, failure)
	switch {
	case err == nil:
		return failure
	case errors.Is(err, unix.ECONNRESET):
		return fmt.Errorf("the shim ended before it read its instructions: %w", err)
	}
	return nil
}
