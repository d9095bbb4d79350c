package download

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

// answer returns a URL for which every request is answered with a status.
func answer(t *testing.T, code int, header ...string) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(code)
	}))
	t.Cleanup(server.Close)
	return server.URL
}

func TestStatus(t *testing.T) {
	for _, c := range []struct {
		code      int
		temporary bool
		want      string
	}{
		{204, false, "the server answered 204 No Content"},
		{206, false, "the server answered 206 Partial Content"},
		{301, false, "the server answered 301 Moved Permanently"}, // without a Location header
		{400, false, "the server answered 400 Bad Request"},
		{401, false, "the server answered 401 Unauthorized: it wants a user and password"},
		{403, false, "the server answered 403 Forbidden: it wants other credentials"},
		{404, false, "the server answered 404 Not Found: check the URL"},
		{408, true, "the server answered 408 Request Timeout"},
		{410, false, "the server answered 410 Gone: check the URL"},
		{429, true, "the server answered 429 Too Many Requests"},
		{500, true, "the server answered 500 Internal Server Error"},
		{502, true, "the server answered 502 Bad Gateway"},
		{503, true, "the server answered 503 Service Unavailable"},
		{599, true, "the server answered 599"},
	} {
		t.Run(fmt.Sprint(c.code), func(t *testing.T) {
			url := answer(t, c.code) + "/x.tar"
			_, _, err := get(t, Client{}, Request{URL: url, Verify: VerifyNo})
			must.ErrorContains(t, err, "download "+url+": "+c.want)
			must.EqOp(t, c.temporary, isTemporary(err))
		})
	}
}

func TestConnectFails(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(t, err)
	must.NoError(t, listener.Close())
	_, _, err = get(t, Client{}, Request{URL: "http://" + listener.Addr().String() + "/x.tar", Verify: VerifyNo})
	must.ErrorContains(t, err, "connection refused")
	must.True(t, isTemporary(err))

	_, _, err = get(t, Client{}, Request{URL: strings.Replace(answer(t, 200), "http:", "https:", 1) + "/x.tar", Verify: VerifyNo})
	must.ErrorIs(t, err, http.ErrSchemeMismatch)
	must.False(t, isTemporary(err))
}

func TestCertificate(t *testing.T) {
	site := newSite(t, map[string][]byte{"/x.tar": image})
	site.StartTLS()
	r := Request{URL: site.URL + "/x.tar", Verify: VerifyNo}
	_, _, err := get(t, Client{}, r)
	must.ErrorContains(t, err, "certificate signed by unknown authority")
	must.False(t, isTemporary(err))
	must.SliceEmpty(t, site.asked("/x.tar"))

	content, _, err := get(t, Client{CAFile: site.caFile(t)}, r)
	must.NoError(t, err)
	must.EqOp(t, string(image), content)

	_, _, err = get(t, Client{CAFile: filepath.Join(t.TempDir(), "absent")}, r)
	must.ErrorContains(t, err, "read CA file: ")
	_, _, err = get(t, Client{CAFile: tempFile(t, []byte("junk"))}, r)
	must.ErrorContains(t, err, "read CA file: no certificate in ")
}

// redirecting makes a site with one image, /9.tar, to which /0.tar leads by nine
// redirects.
func redirecting(t *testing.T) *site {
	site := newSite(t, map[string][]byte{"/9.tar": image})
	site.before = func(w http.ResponseWriter, r *http.Request, _ int) bool {
		var hop int
		if _, err := fmt.Sscanf(r.URL.Path, "/%d.tar", &hop); err != nil || hop == 9 {
			return false
		}
		http.Redirect(w, r, fmt.Sprintf("/%d.tar", hop+1), http.StatusFound)
		return true
	}
	return site
}

func TestRedirect(t *testing.T) {
	site := redirecting(t)
	site.StartTLS()
	ca := site.caFile(t)
	for _, c := range []struct {
		from int
		want string
	}{
		{0, ""},
		{-1, ""}, // ten redirects
		{-2, "redirect refused: there were 10 before it"},
	} {
		content, _, err := get(t, Client{CAFile: ca}, Request{URL: fmt.Sprintf("%s/%d.tar", site.URL, c.from), Verify: VerifyNo})
		if c.want != "" {
			must.ErrorContains(t, err, c.want)
			must.False(t, isTemporary(err))
			continue
		}
		must.NoError(t, err)
		must.EqOp(t, string(image), content)
	}
}

func TestRedirectAcrossSchemes(t *testing.T) {
	plain := newSite(t, map[string][]byte{"/x.tar": image})
	plain.Start()
	secure := newSite(t, map[string][]byte{"/x.tar": image})
	to := func(target *site) func(w http.ResponseWriter, r *http.Request, _ int) bool {
		return func(w http.ResponseWriter, r *http.Request, _ int) bool {
			if !strings.HasPrefix(r.URL.Path, "/to") {
				return false
			}
			http.Redirect(w, r, target.URL+strings.TrimPrefix(r.URL.Path, "/to"), http.StatusMovedPermanently)
			return true
		}
	}
	secure.before = to(plain)
	secure.StartTLS()
	plain.before = to(secure)
	c := Client{CAFile: secure.caFile(t)}

	_, _, err := get(t, c, Request{URL: secure.URL + "/to/x.tar", Verify: VerifyNo})
	must.ErrorContains(t, err, "redirect refused: it leads from https to http")
	must.False(t, isTemporary(err))
	_, _, err = get(t, c, Request{URL: plain.URL + "/to/to/x.tar", Verify: VerifyNo})
	must.ErrorContains(t, err, "redirect refused: it leads from https to http")
	must.SliceEmpty(t, plain.asked("/x.tar"))

	content, _, err := get(t, c, Request{URL: plain.URL + "/to/x.tar", Verify: VerifyNo})
	must.NoError(t, err)
	must.EqOp(t, string(image), content)

	for _, location := range []string{"file:///etc/passwd", "ftp://127.0.0.1/x"} {
		_, _, err = get(t, c, Request{URL: answer(t, 302, "Location", location) + "/x.tar", Verify: VerifyNo})
		must.ErrorContains(t, err, "redirect refused")
	}
}

func TestCredentials(t *testing.T) {
	elsewhere := newSite(t, map[string][]byte{"/x.tar": image})
	elsewhere.Start()
	other := strings.Replace(elsewhere.URL, "127.0.0.1", "localhost", 1)

	site := newSite(t, map[string][]byte{"/x.tar": image})
	site.files["/SHA256SUMS"] = listOf(site.files)
	site.before = func(w http.ResponseWriter, r *http.Request, _ int) bool {
		user, password, _ := r.BasicAuth()
		switch {
		case user != "us er" || password != "p@ss":
			w.WriteHeader(http.StatusUnauthorized)
		case r.URL.Path == "/moved.tar":
			http.Redirect(w, r, "http://"+r.Host+"/x.tar", http.StatusFound)
		case r.URL.Path == "/elsewhere.tar":
			http.Redirect(w, r, other+"/x.tar", http.StatusFound)
		default:
			return false
		}
		return true
	}
	site.Start()
	for _, name := range []string{"x.tar", "moved.tar", "elsewhere.tar"} {
		r := Request{URL: strings.Replace(site.URL, "//", "//us%20er:p%40ss@", 1) + "/" + name, SHA256: sumOf(image)}
		_, _, err := get(t, Client{}, r)
		must.NoError(t, err)
	}
	must.SliceLen(t, 1, elsewhere.asked("/x.tar"))
	must.EqOp(t, "", elsewhere.asked("/x.tar")[0].Header.Get("Authorization"))
	must.StrNotContains(t, fmt.Sprint(elsewhere.asked("/x.tar")[0].Header), "p@ss")

	_, err := Client{}.Resolve(t.Context(), Request{URL: strings.Replace(site.URL, "//", "//us%20er:p%40ss@", 1) + "/x.tar", Verify: VerifyChecksum})
	must.NoError(t, err)
}

// TestNoSecretInErrors makes requests that fail, for every kind of error.
func TestNoSecretInErrors(t *testing.T) {
	refused := answer(t, 404)
	server, err := url.Parse(refused)
	must.NoError(t, err)
	for _, format := range []string{
		"http://%s@" + server.Host + "/x.tar?X-Amz-Signature=hunter2",
		"https://%s@" + server.Host + "/x.tar",
		"http://%s@" + server.Host,
		"http://%s@" + server.Host + "/x/",
		"http://%s@127.0.0.1:1/x.tar",
		"http://%s@/x.tar",
		"http://%s@host:port/x.tar",
		"http://root:%s/@host/x.tar",
		"http://%s@host with space/x.tar",
		"ftp://%s@host/x.tar",
		"file://%s@host/x.tar",
		"http://%s%%zz@host/x.tar",
		"%s://host/x.tar",
		"%s",
		strings.Replace(answer(t, 302, "Location", "https://"+server.Host+"/hunter2"), "//", "//%s@", 1) + "/x.tar",
		strings.Replace(answer(t, 302, "Location", "ftp://hunter2:hunter2@host/hunter2"), "//", "//%s@", 1) + "/x.tar",
	} {
		for _, secret := range []string{"hunter2", "hunter2:", ":hunter2", "root:hunter2"} {
			location := fmt.Sprintf(format, secret)
			_, _, err := get(t, Client{}, Request{URL: location})
			must.Error(t, err, must.Sprint(location))
			must.StrNotContains(t, err.Error(), "hunter2")
			_, err = Client{}.Resolve(t.Context(), Request{URL: location, Verify: VerifyNo})
			if err != nil {
				must.StrNotContains(t, err.Error(), "hunter2")
			}
		}
	}
}

func TestURL(t *testing.T) {
	for _, c := range []struct{ url, want string }{
		{"", "the URL is none of"},
		{"x.tar", "the URL is none of"},
		{"./x.tar", "the URL is none of"},
		{"ftp://host/x.tar", "the URL is none of"},
		{"http:///x.tar", "the URL is none of"},
		{"http://:80/x.tar", "the URL is none of"},
		{"file://host/x.tar", "the URL is none of"},
		{"http://host/%zz", "the URL is malformed"},
		{"http://host", "the URL http://host does not name a file"},
		{"http://host/", "the URL http://host/ does not name a file"},
		{"http://host/x/?x.tar", "the URL http://host/x/ does not name a file"},
		{"http://host/x/..", "the URL http://host/x/.. does not name a file"},
		{"/", "the URL / does not name a file"},
	} {
		_, _, err := get(t, Client{}, Request{URL: c.url})
		must.ErrorContains(t, err, "download image: "+c.want, must.Sprint(c.url))
	}
}
