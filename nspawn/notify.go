package nspawn

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"
)

// notifySocket receives what systemd-nspawn reports to its supervisor (sd_notify(3)). The
// unit has NotifyAccess=none, so systemd does not set a socket of its own.
type notifySocket struct {
	conn *net.UnixConn
	// ready receives an element when the guest reports for the first time since it began
	// that it is ready. While an element is waiting, no second one is sent.
	ready chan struct{}
	// done is closed when nothing more is read.
	done chan struct{}

	closing chan struct{} // closed by close
	isReady bool          // the guest has reported that it is ready; used only by read
}

// A guest can send as often as it likes, and nspawn passes READY=1 on. After each burst of
// messages, reading pauses. So a flood costs the plugin next to nothing. nspawn, whose
// messages wait in the socket's queue, has time for everything else in between.
const (
	notifyBurst = 16
	notifyPause = 100 * time.Millisecond
)

// notification is one message: values by name.
type notification map[string]string

const maxNotification = 4096

// listenNotify creates the socket. It replaces the socket of an earlier listener.
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

// close does not remove the socket, because another process may already listen there.
// Remove does.
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

// take handles a message. nspawn sends the leader's PID when the machine is set up. With
// --notify-ready=yes, it sends READY=1 when the guest does, otherwise when nspawn itself
// is ready.
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
