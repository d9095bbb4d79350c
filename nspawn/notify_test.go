package nspawn

import (
	"fmt"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

func TestParseNotification(t *testing.T) {
	must.Eq(t, notification{"STATUS": "Container running.", "X_NSPAWN_LEADER_PID": "898", "READY": "1"},
		parseNotification("STATUS=Container running.\nX_NSPAWN_LEADER_PID=898\nREADY=1"))
	must.Eq(t, notification{}, parseNotification("\nnothing\n"))
}

// TestNotifyFlood sends READY=1 all the time. It must be reported once per start, and few
// of the messages may be read.
func TestNotifyFlood(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	n, err := listenNotify(path)
	must.NoError(t, err)
	t.Cleanup(n.close)
	conn, err := net.Dial("unixgram", path)
	must.NoError(t, err)
	defer conn.Close()
	say := func(text string) {
		_, err := conn.Write([]byte(text))
		must.NoError(t, err)
	}
	for start := range 2 { // and a reboot
		say(fmt.Sprintf("X_NSPAWN_LEADER_PID=%d", start))
		say("READY=1")
		<-n.ready
		stop, sent := time.After(time.Second), 0
	flood:
		for {
			select {
			case <-stop:
				break flood
			case <-n.ready:
				t.Fatal("reported again")
			default:
				conn.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
				if _, err := conn.Write([]byte("READY=1")); err == nil {
					sent++
				}
			}
		}
		conn.SetWriteDeadline(time.Time{})
		t.Log(sent, "messages in a second")
		must.Less(t, 1500, sent) // the queue, and one burst per pause
	}
}
