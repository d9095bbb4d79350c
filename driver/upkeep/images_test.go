package upkeep

import (
	"testing"
	"time"

	"nomad-driver-nspawn/driver/operator"

	"github.com/shoenig/test/must"
)

// TestImageGCPause checks that images are collected when they are due, at most a tenth too
// late.
func TestImageGCPause(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		unusedFor string
		due       time.Duration // 0: no image is unused
		want      time.Duration
	}{
		{"30s", 0, 30 * time.Second},
		{"30s", 10 * time.Second, 10 * time.Second},
		{"30s", time.Millisecond, 1500 * time.Millisecond},
		{"30s", -time.Hour, 1500 * time.Millisecond},
		{"10m", 3 * time.Minute, 3 * time.Minute},
		{"24h", 20 * time.Hour, 5 * time.Minute},
		{"24h", time.Second, 5 * time.Minute},
		{"24h", 0, 5 * time.Minute},
	} {
		var next time.Time
		if c.due != 0 {
			next = now.Add(c.due)
		}
		got := pause(operator.ImageGC{UnusedFor: c.unusedFor}, now, next)
		must.Eq(t, c.want, got, must.Sprintf("%+v", c))
	}
}
