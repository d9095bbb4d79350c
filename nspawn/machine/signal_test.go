package machine

import (
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

func TestParseSignal(t *testing.T) {
	for name, want := range map[string]unix.Signal{
		"SIGTERM": unix.SIGTERM, "term": unix.SIGTERM, "Hup": unix.SIGHUP, "sigusr1": unix.SIGUSR1,
		"SIGRTMIN+3": 37, "rtmin": 34, "RTMAX-1": 63, "9": unix.SIGKILL,
	} {
		got, err := ParseSignal(name)
		must.NoError(t, err)
		must.Eq(t, want, got, must.Sprint(name))
	}
	for _, name := range []string{"", "SIGFOO", "0", "65", "-1", "RTMIN-1", "RTMIN+31", "RTMIN+", "RTMINx"} {
		_, err := ParseSignal(name)
		must.Error(t, err, must.Sprint(name))
	}
}
