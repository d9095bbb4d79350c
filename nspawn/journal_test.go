package nspawn

import (
	"testing"

	"github.com/shoenig/test/must"
)

func TestMessagesOf(t *testing.T) {
	entries := `{"MESSAGE":"of another unit","_PID":"10","_SYSTEMD_UNIT":"b.service"}
{"MESSAGE":"of the unit","_PID":"11","_SYSTEMD_UNIT":"a.service"}
{"MESSAGE":"of its child, gone","_PID":"13"}
{"MESSAGE":"of another unit","_PID":"20","_SYSTEMD_UNIT":"b.service"}
{"MESSAGE":"of another's child, gone","_PID":"21"}
{"MESSAGE":"of an older process, gone","_PID":"9"}
{"MESSAGE":[102,111],"_PID":"11","_SYSTEMD_UNIT":"a.service"}
`
	must.Eq(t, []string{"of the unit", "of its child, gone"}, messagesOf([]byte(entries), "a.service", 11))
}
