package nspawn

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"
)

// notifySocket receives what systemd-nspawn tells its supervisor (sd_notify(3)).
// The unit has NotifyAccess=none, so systemd sets no socket of its own.
type notifySocket struct {
	conn *net.UnixConn
	// ready gets an element when the guest says for the first time since it began that it
	// is ready. An element that is not received is not sent twice.
	ready chan struct{}
	// done is closed when no more is read.
	done chan struct{}

	closing chan struct{} // closed by close
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
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("listen for notifications: %w", err)
	}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("listen for notifications: %w", err)
	}
	n := &notifySocket{
		conn:    conn,
		ready:   make(chan struct{}, 1),
		done:    make(chan struct{}),
		closing: make(chan struct{}),
	}
	go n.read()
	return n, nil
}

// close leaves the socket's name to Remove: another may listen there by now.
func (n *notifySocket) close() {
	close(n.closing)
	n.conn.Close()
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

// take: nspawn tells the leader's PID when the machine is set up, and with
// --notify-ready=yes READY=1 when the guest does. Without, it says so of itself.
func (n *notifySocket) take(message notification) {
	if message["X_NSPAWN_LEADER_PID"] != "" {
		n.isReady = false
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
