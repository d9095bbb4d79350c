package nspawn

import (
	"strings"
	"testing"
)

// FuzzNotification takes whatever a guest may have systemd-nspawn pass on.
func FuzzNotification(f *testing.F) {
	f.Add("READY=1\nSTATUS=Container running.\nX_NSPAWN_LEADER_PID=7")
	f.Add("READY=1\n\n=\n===")
	f.Add("X_NSPAWN_LEADER_PID=\nREADY=1\nREADY=0")
	f.Fuzz(func(t *testing.T, text string) {
		message := parseNotification(text)
		for name, value := range message {
			if strings.ContainsAny(name, "=\n") || strings.Contains(value, "\n") {
				t.Errorf("%q is %q", name, value)
			}
		}
		n := &notifySocket{ready: make(chan struct{}, 1)}
		for range 3 { // none blocks, and all of them are heard once
			n.take(message)
		}
		if ready := message["READY"] == "1"; ready != (len(n.ready) == 1) {
			t.Errorf("%q is taken for ready: %t", text, !ready)
		}
	})
}

// FuzzMessages reads whatever is in the journal: what nspawn complains of has names that
// the image and the guest give.
func FuzzMessages(f *testing.F) {
	f.Add([]byte(`{"MESSAGE":"x","_PID":"7","_SYSTEMD_UNIT":"u"}` + "\n" + `{"MESSAGE":"y","_PID":"8"}` + "\n"))
	f.Add([]byte(`{"MESSAGE":[120,255],"_PID":"7"}` + "\n" + `{"MESSAGE":null,"_PID":7}` + "\n{"))
	f.Fuzz(func(t *testing.T, entries []byte) {
		if messages := messagesOf(entries, "u", 7); len(messages) > strings.Count(string(entries), "\n")+1 {
			t.Errorf("%d messages", len(messages))
		}
	})
}
