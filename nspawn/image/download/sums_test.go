package download

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

var (
	hexSum = regexp.MustCompile(`^[0-9a-f]{64}$`)

	sumA = strings.Repeat("a1", 32)
	sumB = strings.Repeat("b2", 32)
)

func TestFindSum(t *testing.T) {
	for _, c := range []struct{ name, list, want string }{
		{"text mode", sumA + "  x.raw\n", sumA},
		{"binary mode", sumA + " *x.raw\n", sumA},
		{"one space", sumA + " x.raw\n", sumA},
		{"tagged", "SHA256 (x.raw) = " + sumA + "\n", sumA},
		{"no end of line", sumA + "  x.raw", sumA},
		{"end of line of Windows", sumA + "  x.raw\r\n", sumA},
		{"upper case", strings.ToUpper(sumA) + "  x.raw\n", sumA},
		{"among others", sumB + "  y.raw\n\n# a comment\n" + sumA + "  x.raw\n" + sumB + "  z.raw\n", sumA},
		{"twice the same", sumA + "  x.raw\nSHA256 (x.raw) = " + strings.ToUpper(sumA) + "\n", sumA},
		{"tagged as other than SHA256", "SHA512 (x.raw) = " + sumB + "\n" + sumA + "  x.raw\n", sumA},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := findSum([]byte(c.list), "x.raw")
			must.NoError(t, err)
			must.EqOp(t, c.want, got)
		})
	}
}

func TestFindSumFails(t *testing.T) {
	for _, c := range []struct{ name, list, want string }{
		{"empty", "", "none of its 0 checksums is for \"x.raw\"; give sha256"},
		{"others only", sumA + "  y.raw\n", "none of its 1 checksums"},
		{"longer name", sumA + "  x.raw.xz\n" + sumA + "  ax.raw\n", "none of its 2 checksums"},
		{"in a directory", sumA + "  ./x.raw\n" + sumA + "  images/x.raw\n", "none of its 2 checksums"},
		{"other case", sumA + "  X.raw\n", "none of its 1 checksums"},
		{"no name", sumA + "\n" + sumA + "  \n", "none of its 0 checksums"},
		{"short sum", sumA[1:] + "  x.raw\n", "none of its 0 checksums"},
		{"long sum", sumA + "00  x.raw\n", "none of its 0 checksums"},
		{"no sum", strings.Repeat("zz", 32) + "  x.raw\n", "none of its 0 checksums"},
		{"space before", " " + sumA + "  x.raw\n", "none of its 0 checksums"},
		{"tag without end", "SHA256 (x.raw = " + sumA + "\n", "none of its 0 checksums"},
		{"two sums", sumA + "  x.raw\n" + sumB + "  x.raw\n", "two checksums for \"x.raw\", " + sumA + " and " + sumB},
		{"two sums in two forms", sumA + " *x.raw\nSHA256 (x.raw) = " + sumB + "\n", "two checksums"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := findSum([]byte(c.list), "x.raw")
			must.ErrorContains(t, err, c.want)
		})
	}
}

// TestFindSumOfTool reads the output of the tool, also for names that could be misread.
func TestFindSumOfTool(t *testing.T) {
	tool, err := exec.LookPath("sha256sum")
	must.NoError(t, err)
	dir := t.TempDir()
	for _, name := range []string{"x.raw", "a b.raw", "a) = b.raw", " x.raw", "*x.raw", "SHA256 (x.raw", "ü.raw"} {
		content := []byte("content of " + name)
		must.NoError(t, os.WriteFile(filepath.Join(dir, name), content, 0o600))
		for _, option := range []string{"--text", "--binary", "--tag"} {
			cmd := exec.Command(tool, option, "--", name)
			cmd.Dir = dir
			list, err := cmd.Output()
			must.NoError(t, err)
			got, err := findSum(list, name)
			must.NoError(t, err, must.Sprintf("%s", list))
			must.EqOp(t, sumOf(content), got)
		}
	}
}

// FuzzFindSum checks properties that hold for every list: the result is a checksum, it is
// in the list with the name, and there is no result if the list contradicts itself.
func FuzzFindSum(f *testing.F) {
	f.Add([]byte(sumA+"  x.raw\n"), "x.raw")
	f.Add([]byte(sumA+" *x.raw\r\n"+sumB+" y"), "y")
	f.Add([]byte("SHA256 (a) = b) = "+sumA), "a) = b")
	f.Add([]byte("SHA256 () = "+sumA), "")
	f.Fuzz(func(t *testing.T, list []byte, name string) {
		sum, err := findSum(list, name)
		if err != nil {
			must.EqOp(t, "", sum)
			return
		}
		must.RegexMatch(t, hexSum, sum)
		must.StrContains(t, strings.ToLower(string(list)), sum)
		must.StrContains(t, string(list), name)
		_, err = findSum(append(list, "\nSHA256 ("+name+") = "+otherSum(sum)+"\n"...), name)
		must.ErrorContains(t, err, "two checksums")
	})
}

func otherSum(sum string) string {
	if sum == sumA {
		return sumB
	}
	return sumA
}
