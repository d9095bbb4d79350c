// Package gate holds a machine's payload back until the plugin has finished the
// container from outside, and then tells it what to run.
//
// systemd-nspawn runs the shim (package inside) as the payload. Two paths are bound into
// the machine for it, read-only: the shim's program, and the gate, a directory of the
// machine in which the plugin listens.
//
//	shim                        plugin
//	connects, says hello   ──▶  checks who that is, finishes the container
//	                       ◀──  instructions: with them, the payload begins
//	execve(2)              ──▶  end of file: the payload has begun
//	                            or a failure: why there is no payload
//
// A shim that finds no plugin waits for one. So a plugin that is away delays a start, or
// the reboot of a guest, and does not end the task.
//
// The directory stays in sight of the payload, and the payload may connect, too. So a
// gate lets one visitor in and then closes, and the caller checks who the visitor is.
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
	"time"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/gate/inside"
)

// Gate is a place where the shim of a machine connects.
type Gate struct {
	listener *net.UnixListener
	path     string
}

// Make makes the gate's directory.
func Make(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make the gate: %w", err)
	}
	// A umask must not keep the container out.
	if err := os.Chmod(dir, 0o755); err != nil {
		return fmt.Errorf("make the gate: %w", err)
	}
	return nil
}

// Listen listens in the gate's directory, in place of a plugin that did so before.
func Listen(dir string) (*Gate, error) {
	path := filepath.Join(dir, inside.Socket)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("open the gate: %w", err)
	}
	// It gets its name last, when whoever sees it may connect.
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

// Close ends the listening. It leaves the socket's name to Listen: another plugin may
// listen there by now.
func (g *Gate) Close() { g.listener.Close() }

// Peer is the process that has connected, by the numbers of the host.
type Peer struct {
	PID, UID int
}

// greeting is how long a visitor may take to say hello. The shim does so at once.
const greeting = 5 * time.Second

// Await returns the first visitor that has said hello and that admit does not refuse. Then
// the gate is closed.
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

// receive checks a visitor. A process that is alive after it was looked at was the same
// all the time: its connection would have ended with it.
func receive(ctx context.Context, conn *net.UnixConn, admit func(Peer) error) (*Visitor, error) {
	peer, err := credentials(conn)
	if err != nil {
		return nil, err
	}
	v := &Visitor{Peer: peer, conn: conn}
	if err := v.hear(ctx, greeting, maxHello, &v.hello); err != nil {
		return nil, err
	}
	if err := admit(peer); err != nil {
		return nil, err
	}
	return v, v.present()
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
		return peer, fmt.Errorf("identify the visitor: %w", err)
	}
	return Peer{PID: int(ucred.Pid), UID: int(ucred.Uid)}, nil
}

// Visitor is a shim that waits at the gate.
type Visitor struct {
	Peer
	hello inside.Hello
	conn  *net.UnixConn
}

// maxHello is the largest size of a hello in bytes.
const maxHello = 4 << 10

// hear reads one value from the container, which may send anything or nothing.
func (v *Visitor) hear(ctx context.Context, timeout time.Duration, size int64, value any) error {
	release := v.deadline(ctx, timeout)
	defer release()
	decoder := json.NewDecoder(io.LimitReader(v.conn, size))
	if err := decoder.Decode(value); err != nil {
		return err
	}
	if rest, _ := io.ReadAll(decoder.Buffered()); len(rest) > 0 {
		return errors.New("the visitor at the gate says more than the shim does")
	}
	return nil
}

// deadline ends reads and writes after a time, and with ctx. The caller releases it.
func (v *Visitor) deadline(ctx context.Context, timeout time.Duration) (release func()) {
	_ = v.conn.SetDeadline(time.Now().Add(timeout)) // fails for a closed one only, as what follows
	stop := context.AfterFunc(ctx, func() { _ = v.conn.SetDeadline(time.Unix(1, 0)) })
	return func() { stop() }
}

// present returns an error if the shim has gone, or has sent what it need not.
func (v *Visitor) present() error {
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
		return fmt.Errorf("the shim at the gate has gone: %w", err)
	case n == 0:
		return errors.New("the shim at the gate has gone")
	}
	return errors.New("the visitor at the gate is not the shim")
}

// Close ends the connection. A shim that has no instructions waits for another plugin.
func (v *Visitor) Close() { v.conn.Close() }

// Timeouts of the last steps. A shim that takes longer hangs in the kernel, as on a
// network file system that is away.
const (
	telling   = 30 * time.Second
	beginning = 30 * time.Second
)

// Open sends the instructions. It returns nil when the payload has begun, an
// *inside.Failure if it cannot be, and another error if the shim has ended before.
//
// It also returns nil when no answer has come in time, or ctx has ended since: what may
// have begun must not be started again.
func (v *Visitor) Open(ctx context.Context, todo inside.Instructions) error {
	defer v.Close()
	message, err := json.Marshal(todo)
	if err != nil {
		return fmt.Errorf("encode the instructions: %w", err)
	}
	release := v.deadline(ctx, telling)
	_, err = v.conn.Write(message)
	release()
	if err != nil {
		// The shim takes instructions that are cut off for none.
		return fmt.Errorf("send the instructions to the shim: %w", err)
	}
	failure := new(inside.Failure)
	err = v.hear(ctx, beginning, inside.MaxFailure, failure)
	switch {
	case err == nil:
		return failure
	case errors.Is(err, unix.ECONNRESET):
		return fmt.Errorf("the shim has ended before it read its instructions: %w", err)
	}
	return nil
}
