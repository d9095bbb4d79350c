package network

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/e2e/host/hosttest"
)

// serve starts a machine that tells its name on the host's port, which is
// forwarded for TCP and UDP, and waits until the port is.
func serve(t *testing.T, machine string, hostPort int) Result {
	t.Helper()
	dir := t.TempDir() + "/guest"
	out, err := exec.Command("cp", "-a", hosttest.Busybox, dir).CombinedOutput()
	must.NoError(t, err, must.Sprint(string(out)))
	must.NoError(t, os.WriteFile(dir+"/page", []byte("from "+machine), 0o644))
	leader := nspawn(t, machine, "--directory="+dir, "--console=pipe", "--as-pid2",
		fmt.Sprintf("--port=tcp:%d:80", hostPort), fmt.Sprintf("--port=udp:%d:80", hostPort),
		"nc", "-ll", "-p", "80", "-e", "cat", "/page")
	// systemd-nspawn forwards to an IPv6 address too. It sees this one before
	// that of IPv4: once the port leads to the second, it does to the first.
	for _, args := range []string{"link set host0 up", fmt.Sprintf("-6 address add fd00:%x::2/64 dev host0 nodad", hostPort)} {
		args := append([]string{"-t", strconv.Itoa(leader), "-n", "ip"}, strings.Fields(args)...)
		out, err := exec.Command("nsenter", args...).CombinedOutput()
		must.NoError(t, err, must.Sprint(string(out)))
	}
	result, err := Configure(deadline(t, 10*time.Second), leader)
	must.NoError(t, err)
	must.Eq(t, "from "+machine, get(t, fmt.Sprint(ownAddress(t), ":", hostPort)))
	return result
}

// listNAT returns what nft tells of systemd's table of a family.
func listNAT(t *testing.T, family string) string {
	t.Helper()
	out, err := exec.Command("nft", "-n", "list", "table", family, "io.systemd.nat").CombinedOutput()
	must.NoError(t, err, must.Sprint(string(out)))
	return string(out)
}

// TestHostForwards kills systemd-nspawn, which leaves its port to lead to
// nobody, removes that, and gives the port to another machine.
func TestHostForwards(t *testing.T) {
	hosttest.Require(t)
	serve(t, "fwd-killed", 18090)
	other := serve(t, "fwd-other", 18091)
	out, err := exec.Command("systemctl", "kill", "--signal=KILL", "fwd-killed").CombinedOutput()
	must.NoError(t, err, must.Sprint(string(out)))
	_ = exec.Command("systemctl", "stop", "fwd-killed").Run() // waits for the end; fails after it
	for _, family := range []string{"ip", "ip6"} {
		must.StrContains(t, listNAT(t, family), "6 . 18090 :")
		must.StrContains(t, listNAT(t, family), "17 . 18090 :")
	}

	begin := time.Now()
	must.NoError(t, RemoveForwards([]Forward{{"tcp", 18090}, {"udp", 18090}}))
	t.Log("removed in", time.Since(begin))
	for _, family := range []string{"ip", "ip6"} {
		must.StrNotContains(t, listNAT(t, family), "18090")
		must.StrContains(t, listNAT(t, family), "6 . 18091 :")
		must.StrContains(t, listNAT(t, family), "17 . 18091 :")
	}
	must.StrContains(t, listNAT(t, "ip"), other.Address.Masked().String()) // is masqueraded
	must.Eq(t, "from fwd-other", get(t, ownAddress(t)+":18091"))
	serve(t, "fwd-next", 18090)
}
