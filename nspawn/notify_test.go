package nspawn

import (
	"testing"

	"github.com/shoenig/test/must"
)

func TestParseNotification(t *testing.T) {
	must.Eq(t, notification{"STATUS": "Container running.", "X_NSPAWN_LEADER_PID": "898", "READY": "1"},
		parseNotification("STATUS=Container running.\nX_NSPAWN_LEADER_PID=898\nREADY=1"))
	must.Eq(t, notification{}, parseNotification("\nnothing\n"))
}
