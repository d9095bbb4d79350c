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
	// up gets the leader's PID when nspawn has set the machine up, ready an element
	// when the guest says for the first time since then that it is ready. An element
	// that is not received is not sent twice.
	up    chan int
	ready chan struct{}
	// done is closed when no more is read.
	done chan struct{}

	closing chan struct{} // closed by close and finish
	isReady bool          // the guest has said so; only read knows
}

// A guest can send as often as it likes, and nspawn passes READY=1 on. After each burst
// of messages, none is read for a moment. So a flood costs the plugin next to nothing, and
// nspawn, whose messages wait in the socket's queue, has time for all else in between.
const (
	notifyBurst = 16
	notifyPause = 100 * time.Millisecond
)

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
		conn:    conn,
		up:      make(chan int, 1),
		ready:   make(chan struct{}, 1),
		done:    make(chan struct{}),
		closing: make(chan struct{}),
	}
	go n.read()
	return n, nil
}

// close leaves the socket's name to Remove: another may listen there by now.
func (n *notifySocket) close() {
	n.end()
	n.conn.Close()
	<-n.done
}

// end ends a pause.
func (n *notifySocket) end() {
	select {
	case <-n.closing: // by finish
	default:
		close(n.closing)
	}
}

// finish returns when all that was sent until now has been read. What nspawn
// sent is in the queue before nspawn is gone.
func (n *notifySocket) finish() {
	n.conn.SetReadDeadline(time.Unix(1, 0))
	n.end()
	<-n.done
}

func (n *notifySocket) read() {
	defer close(n.done)
	buffer := make([]byte, maxNotification)
	for count := 1; ; count++ {
		if count%notifyBurst == 0 {
			n.pause()
		}
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

func (n *notifySocket) pause() {
	select {
	case <-time.After(notifyPause):
	case <-n.closing:
	}
}

// maxQueue bounds what is read of the queue of a socket (net.unix.max_dgram_qlen is
// 512 at most on the hosts that we know).
const maxQueue = 4096

// drain reads what is queued, without waiting.
func (n *notifySocket) drain(buffer []byte) {
	raw, err := n.conn.SyscallConn()
	if err != nil {
		return
	}
	raw.Control(func(fd uintptr) {
		for range maxQueue {
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
		n.isReady = false
		select {
		case n.up <- leader:
		default:
		}
	}
	if message["READY"] == "1" && !n.isReady {
		n.isReady = true
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
