package machine

import (
	"testing"

	"github.com/shoenig/test/must"
)

func TestParseCPUs(t *testing.T) {
	for list, want := range map[string][]int{"0": {0}, "0,2-4": {0, 2, 3, 4}, "7, 9": {7, 9}} {
		got, err := ParseCPUs(list)
		must.NoError(t, err)
		must.Eq(t, want, got)
	}
	for _, list := range []string{"", "a", "3-1", "-1", "0-99999", "1,,2"} {
		_, err := ParseCPUs(list)
		must.Error(t, err, must.Sprint(list))
	}
	must.Eq(t, []byte{0b00001101, 0b00000010}, cpuMask([]int{0, 2, 3, 9}))
}
