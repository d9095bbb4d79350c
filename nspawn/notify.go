package nspawn

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// notifySocket receives what systemd-nspawn tells its supervisor (sd_notify(3)).
// The unit has NotifyAccess=none, so systemd sets no socket of its own.
type notifySocket struct {
	conn *net.UnixConn
	// up has the leader's PID when nspawn has set the machine up, ready an
	// element when the guest said that it is ready. What is not received is not
	// told twice.
	up    chan int
	ready chan struct{}
	// done is closed when no more is read.
	done chan struct{}
}

// notification is one message: assignments by name.
type notification map[string]string

const maxNotification = 4096

// listenNotify listens in place of whoever did so before.
func listenNotify(path string) (*notifySocket, error) {
	if err := ignoreNotExist(os.Remove(path)); err != nil {
		return nil, fmt.Errorf("listen for notifications: %w", err)
	}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("listen for notifications: %w", err)
	}
	n := &notifySocket{
		conn:  conn,
		up:    make(chan int, 1),
		ready: make(chan struct{}, 1),
		done:  make(chan struct{}),
	}
	go n.read()
	return n, nil
}

// close leaves the socket's name to Remove: another may listen there by now.
func (n *notifySocket) close() {
	n.conn.Close()
	<-n.done
}

// finish returns when all that was sent until now has been read. What nspawn
// sent is in the queue before nspawn is gone.
func (n *notifySocket) finish() {
	n.conn.SetReadDeadline(time.Unix(1, 0))
	<-n.done
}

func (n *notifySocket) read() {
	defer close(n.done)
	buffer := make([]byte, maxNotification)
	for {
		size, err := n.conn.Read(buffer)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			n.drain(buffer)
			return
		}
		if err != nil {
			return
		}
		n.take(parseNotification(string(buffer[:size])))
	}
}

// drain reads what is queued, without waiting.
func (n *notifySocket) drain(buffer []byte) {
	raw, err := n.conn.SyscallConn()
	if err != nil {
		return
	}
	raw.Control(func(fd uintptr) {
		for {
			size, _, err := unix.Recvfrom(int(fd), buffer, unix.MSG_DONTWAIT)
			if err != nil {
				return
			}
			n.take(parseNotification(string(buffer[:size])))
		}
	})
}

// take: nspawn tells the leader's PID when the machine is set up, and with
// --notify-ready=yes READY=1 when the guest does. Without, it says so of itself.
func (n *notifySocket) take(message notification) {
	if leader, err := strconv.Atoi(message["X_NSPAWN_LEADER_PID"]); err == nil {
		select {
		case n.up <- leader:
		default:
		}
	}
	if message["READY"] == "1" {
		select {
		case n.ready <- struct{}{}:
		default:
		}
	}
}

func parseNotification(text string) notification {
	message := notification{}
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "="); ok {
			message[name] = value
		}
	}
	return message
}

func ignoreNotExist(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
