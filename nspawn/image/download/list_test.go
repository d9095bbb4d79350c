package download

import (
	"bytes"
	"errors"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"
	"github.com/shoenig/test/must"
)

func isTemporary(err error) bool { return errors.Is(err, ErrTemporary) }

// The image of the sites in these tests, as in the URL of a request.
const imagePath = "/img/x y.tar.xz"

var image = bytes.Repeat([]byte("image "), 20_000)

// verifyCase describes the files beside the image, and the expected result.
type verifyCase struct {
	name   string
	verify Verify
	sha256 string
	beside map[string][]byte
	want   string // expected error; empty means success
}

func verifyCases(t *testing.T, key *openpgp.Entity) []verifyCase {
	list := listOf(map[string][]byte{imagePath: image, "other.raw": []byte("other")})
	wrong := listOf(map[string][]byte{imagePath: []byte("another image")})
	huge := append(bytes.Clone(list), bytes.Repeat([]byte("#"), maxBeside)...)
	stranger := newKey(t, 0)
	type files = map[string][]byte
	return []verifyCase{
		{"nothing asked", VerifyNo, "", nil, ""},
		{"wrong sums not asked", VerifyNo, "", files{"SHA256SUMS": wrong}, ""},

		{"sum of job", VerifyNo, sumOf(image), nil, ""},
		{"digest of job", "", "sha256:" + sumOf(image), nil, ""},
		{"job against list", VerifyChecksum, sumOf(image), files{"SHA256SUMS": wrong}, ""},
		{"wrong sum of job", VerifyNo, "sha256:" + sumA, nil, "checksum sha256:" + sumOf(image) + " instead of sha256:" + sumA},
		{"wrong sum of job, good list", VerifyChecksum, sumA, files{"SHA256SUMS": list}, "instead of sha256:" + sumA},
		{"no sum", "", "sha512:" + sumA, nil, `sha256 "sha512:` + sumA + `" is not 64 hexadecimal digits`},

		{"list", VerifyChecksum, "", files{"SHA256SUMS": list}, ""},
		{"own list", VerifyChecksum, "", files{"x y.tar.xz.sha256": list}, ""},
		{"own list first", VerifyChecksum, "", files{"x y.tar.xz.sha256": list, "SHA256SUMS": wrong}, ""},
		{"wrong list", VerifyChecksum, "", files{"SHA256SUMS": wrong}, "instead of sha256:" + sumOf([]byte("another image"))},
		{"no list", VerifyChecksum, "", nil, "there is nothing to verify the file with (read x y.tar.xz.sha256: "},
		{"list of others", VerifyChecksum, "", files{"SHA256SUMS": listOf(files{"y": nil})}, "read SHA256SUMS: none of its 1 checksums is for"},
		{"contradicting list", VerifyChecksum, "", files{"SHA256SUMS": append(bytes.Clone(list), wrong...)}, "read SHA256SUMS: two checksums"},
		{"huge list", VerifyChecksum, "", files{"SHA256SUMS": huge}, "read SHA256SUMS: it has more than 1048576 bytes"},

		{"signed", VerifySignature, "", files{"SHA256SUMS": list, "SHA256SUMS.gpg": sign(t, list, key)}, ""},
		{"signed is what is asked", "", "", files{"SHA256SUMS": list, "SHA256SUMS.gpg": sign(t, list, key)}, ""},
		{"signed, armored", VerifySignature, "", files{"SHA256SUMS": list, "SHA256SUMS.asc": armored(t, openpgp.SignatureType, sign(t, list, key))}, ""},
		{"own list signed", VerifySignature, "", files{"x y.tar.xz.sha256": list, "x y.tar.xz.sha256.asc": sign(t, list, key)}, ""},
		{
			"only the other list is signed", VerifySignature, "",
			files{"x y.tar.xz.sha256": wrong, "SHA256SUMS": list, "SHA256SUMS.gpg": sign(t, list, key)},
			"",
		},
		{"not signed", "", "", files{"SHA256SUMS": list}, "SHA256SUMS has no signature, neither SHA256SUMS.asc nor SHA256SUMS.gpg"},
		{"neither list nor signature", "", "", nil, "there is nothing to verify the file with (read x y.tar.xz.sha256: "},
		{"signature of what was there before", "", "", files{"SHA256SUMS": list, "SHA256SUMS.gpg": sign(t, wrong, key)}, "verify signature of SHA256SUMS: it was made with key"},
		{"signed by a stranger", "", "", files{"SHA256SUMS": list, "SHA256SUMS.gpg": sign(t, list, stranger)}, "not in keyring"},
		{"signed, but wrong", "", "", files{"SHA256SUMS": wrong, "SHA256SUMS.gpg": sign(t, wrong, key)}, "instead of"},

		{"unknown kind", "md5", "", nil, `verify "md5" is none of signature, checksum, no`},
	}
}

func TestVerification(t *testing.T) {
	key := newKey(t, 0)
	ring := []string{writeKeyring(t, key)}
	for _, c := range verifyCases(t, key) {
		t.Run("https/"+c.name, func(t *testing.T) {
			files := map[string][]byte{imagePath: image}
			for name, content := range c.beside {
				files["/img/"+name] = content
			}
			site := newSite(t, files)
			site.StartTLS()
			client := Client{CAFile: site.caFile(t), Keyring: ring}
			c.check(t, client, site.URL+"/img/x%20y.tar.xz?token=secret#fragment")
			for _, r := range site.asked("/img/SHA256SUMS") {
				must.EqOp(t, "", r.URL.RawQuery)
			}
		})
		t.Run("local/"+c.name, func(t *testing.T) {
			dir := t.TempDir()
			files := map[string][]byte{"x y.tar.xz": image}
			maps.Copy(files, c.beside)
			for name, content := range files {
				must.NoError(t, os.WriteFile(filepath.Join(dir, name), content, 0o600))
			}
			c.check(t, Client{Keyring: ring}, dir+"/x y.tar.xz")
			c.check(t, Client{Keyring: ring}, "file://"+dir+"/x%20y.tar.xz")
		})
	}
}

func (c verifyCase) check(t *testing.T, client Client, url string) {
	t.Helper()
	r := Request{URL: url, Verify: c.verify, SHA256: c.sha256}
	content, digest, err := get(t, client, r)
	resolved, resolveErr := client.Resolve(t.Context(), r)
	if c.want != "" {
		must.ErrorContains(t, err, c.want)
		must.False(t, isTemporary(err))
		must.EqOp(t, "", digest)
		if resolveErr == nil { // then only the content was wrong
			must.NotEq(t, "sha256:"+sumOf(image), resolved)
		}
		return
	}
	must.NoError(t, err)
	must.EqOp(t, string(image), content)
	must.EqOp(t, "sha256:"+sumOf(image), digest)
	must.NoError(t, resolveErr)
	if c.verify == VerifyNo && c.sha256 == "" {
		must.EqOp(t, "", resolved)
	} else {
		must.EqOp(t, digest, resolved)
	}
}

// TestResolveDownloadsNothing checks that neither Resolve nor a failing Fetch downloads
// the file.
func TestResolveDownloadsNothing(t *testing.T) {
	site := newSite(t, map[string][]byte{"/x.tar": image})
	site.Start()
	r := Request{URL: site.URL + "/x.tar", Verify: VerifyChecksum}
	_, _, err := get(t, Client{}, r)
	must.ErrorContains(t, err, "there is nothing to verify the file with")
	site.files["/SHA256SUMS"] = listOf(site.files)
	digest, err := Client{}.Resolve(t.Context(), r)
	must.NoError(t, err)
	must.EqOp(t, "sha256:"+sumOf(image), digest)
	must.SliceEmpty(t, site.asked("/x.tar"))
}

// TestListTemporarilyAway checks that a weaker list is not used if the better one is
// temporarily unavailable.
func TestListTemporarilyAway(t *testing.T) {
	site := newSite(t, map[string][]byte{"/x.tar": image})
	site.files["/SHA256SUMS"] = listOf(site.files)
	site.before = func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if r.URL.Path != "/x.tar.sha256" {
			return false
		}
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	}
	site.Start()
	_, _, err := get(t, Client{}, Request{URL: site.URL + "/x.tar", Verify: VerifyChecksum})
	must.ErrorIs(t, err, ErrTemporary)
	must.ErrorContains(t, err, "read x.tar.sha256: the server answered 503 Service Unavailable")
}
