# Results: what becomes of a message when the other side has answered, in
# whatever order, form and number the answers come.

use strict;
use warnings;

use OutboxTest::Cluster;
use OutboxTest::Kafka;
use OutboxTest::Results;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $kafka = OutboxTest::Kafka->new;
$kafka->start;
my $node =
  new_outbox_node('main', bootstrap => $kafka->bootstrap, extension => ['postgres']);
my $test = OutboxTest::Results->new($node, $kafka);

sub binary_id
{
	my ($id) = @_;

	$id =~ s/-//g;
	return pack('H*', $id);
}

my $nobody = '0195c0de-0000-7000-8000-000000000000';

subtest 'what a result does' => sub {
	my ($topic, $results) = $test->new_topics();
	my @ids = $test->messages($topic, 6);

	$kafka->produce($results,
		{ key => $ids[0], value => 'SUCCESS' },
		{ key => $ids[1], value => 'FAILED' },
		{ key => $ids[2], value => " \t\nSUCCESS\r\n " },
		{ key => $ids[3], value => '"FAILED"' },
		{ key => $ids[4], value => '{"status": "SUCCESS", "error": "no"}' },
		{ key => $ids[5], value => '{"error":"out of stock","status":"FAILED"}' });
	$test->counts_are($results, { applied => 6 }, 'all are applied');
	$test->state_is($ids[0], 'CONFIRMED|SUCCESS|', 'plain SUCCESS');
	$test->state_is($ids[1], 'FAILED|FAILED|', 'plain FAILED');
	$test->state_is($ids[2], "CONFIRMED| \t\nSUCCESS\r\n |", 'white space around it');
	$test->state_is($ids[3], 'FAILED|"FAILED"|', 'in JSON quotes');
	$test->state_is($ids[4], 'CONFIRMED|{"status": "SUCCESS", "error": "no"}|',
		'an object; SUCCESS has no error');
	$test->state_is($ids[5], 'FAILED|{"error":"out of stock","status":"FAILED"}|out of stock',
		'an object with an error');
};

subtest 'which message a result is about' => sub {
	my ($topic, $results) = $test->new_topics();
	my @ids = $test->messages($topic, 9);
	my ($header, $correlation) = qw(reply_to_message_id kafka_correlationId);

	$kafka->produce($results,
		{ key => $nobody, value => 'SUCCESS', headers => [ [ $header, $ids[0] ], [ $correlation, $nobody ] ] },
		{ key => $nobody, value => 'SUCCESS', headers => [ [ $correlation, $ids[1] ] ] },
		{ key => $nobody, value => 'SUCCESS', headers => [ [ $correlation, binary_id($ids[2]) ] ] },
		{ key => uc $ids[3], value => 'SUCCESS' },
		{ key => qq("$ids[4]"), value => 'SUCCESS' },
		# what is no UUID doesn't hide what comes after it
		{ key => 'my key', value => 'SUCCESS', headers => [ [ $header, 'none' ], [ $correlation, $ids[5] ] ] },
		{ key => $ids[6], value => 'SUCCESS', headers => [ [ $header, undef ], [ $correlation, '0123456789' ] ] },
		{ key => undef, value => 'SUCCESS', headers => [ [ $header, 'none' ], [ $header, $ids[7] ] ] },
		# sixteen bytes are an id in the one header only
		{ key => binary_id($ids[8]), value => 'SUCCESS' },
		{ key => $ids[8], value => 'SUCCESS', headers => [ [ 'id', $ids[0] ] ] });
	$test->counts_are($results, { applied => 9, bad => 1 }, 'all are found');
	is( $test->query(
			"SELECT count(*) FROM outbox.message WHERE topic = '$topic' AND status = 'CONFIRMED'"),
		9, 'all are confirmed');
};

subtest 'twice, contrary, unknown' => sub {
	my ($topic, $results) = $test->new_topics(partitions => 2);
	my @ids = $test->messages($topic, 4);

	# within one batch, and in another
	$kafka->produce($results,
		{ partition => 0, key => $ids[0], value => 'SUCCESS' },
		{ partition => 0, key => $ids[0], value => 'SUCCESS' },
		{ partition => 0, key => $ids[1], value => '{"status":"FAILED","error":"first"}' },
		{ partition => 0, key => $ids[1], value => 'SUCCESS' },
		{ partition => 0, key => $ids[1], value => '{"status":"FAILED","error":"second"}' },
		{ partition => 0, key => $ids[2], value => 'SUCCESS' },
		{ partition => 0, key => $nobody, value => 'SUCCESS' },
		{ partition => 0, key => '5b1f1f4b-93b4-4b5e-bf20-4a3d2c1b0a99', value => 'FAILED' });
	$test->counts_are($results,
		{ applied => 3, repeated => 2, contrary => 1, unknown => 2 }, 'in one go');
	my $changed = $test->query(
		"SELECT updated_at FROM outbox.message WHERE id = '$ids[0]'");

	$kafka->produce($results,
		{ partition => 1, key => $ids[0], value => 'SUCCESS' },
		{ partition => 0, key => $ids[0], value => 'FAILED' },
		{ partition => 1, key => $ids[1], value => 'FAILED' },
		{ partition => 1, key => $ids[1], value => 'SUCCESS' },
		{ partition => 1, key => $ids[3], value => 'FAILED' },
		{ partition => 1, key => 'ffffffff-ffff-7fff-bfff-ffffffffffff', value => 'FAILED' });
	$test->counts_are($results,
		{ applied => 4, repeated => 4, contrary => 3, unknown => 3 }, 'later, elsewhere');
	$test->state_is($ids[0], 'CONFIRMED|SUCCESS|', 'the first SUCCESS stays');
	$test->state_is($ids[1], 'FAILED|{"status":"FAILED","error":"first"}|first',
		'the first FAILED stays');
	is( $test->query(
			"SELECT updated_at FROM outbox.message WHERE id = '$ids[0]'"),
		$changed, 'what is final is not touched');
	is( $test->query('SELECT confirmed > 0 AND failed > 0 FROM outbox.stat'),
		't', 'outbox.stat counts them');
};

subtest 'before the SENT mark' => sub {
	my ($topic, $results) = $test->new_topics();
	my $lost = $test->new_name('lost');

	# the acknowledgement is lost for good: the topic doesn't even exist
	$test->set_topic($lost, $results);
	my $id = $test->query("SELECT outbox.send('$lost', 'm'::text)");
	$kafka->produce($results, { key => $id, value => 'SUCCESS' });
	$test->counts_are($results, { applied => 1 }, 'a NEW message');
	$test->state_is($id, 'CONFIRMED|SUCCESS|', 'is confirmed');
	$kafka->create_topic($lost, 1);
	my ($next) = $test->messages($lost, 1);
	is(scalar($kafka->consume($lost)), 1, 'and not published any more');

	# the mark of a batch waits for the lock of its first message
	set_conf($node, 'outbox.enabled' => 'off');
	$test->wait_for(
		q(SELECT count(*) FROM outbox.worker WHERE kind = 'publisher' AND state LIKE 'resting%'), 1);
	my ($first, $second) = split /\n/, $test->query(
		"SELECT outbox.send('$topic', 'm'::text) FROM generate_series(1, 2)");
	$test->query(
		"BEGIN; SELECT FROM outbox.log WHERE id = '$first' FOR UPDATE; PREPARE TRANSACTION 'lock'");
	set_conf($node, 'outbox.enabled' => 'on');
	$test->wait_for(
		q(SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'
		  AND backend_type LIKE 'outbox publisher%'), 1);
	$kafka->produce($results, { key => $second, value => 'FAILED' });
	$test->counts_are($results, { applied => 2 }, 'a message about to be marked');
	$test->query("COMMIT PREPARED 'lock'");
	$test->wait_for(
		"SELECT status FROM outbox.message WHERE id = '$first'", 'SENT');
	$test->state_is($second, 'FAILED|FAILED|', 'is not marked after that');
};

subtest 'late' => sub {
	my ($topic, $results) =
	  $test->new_topics(rest => q(, result_timeout => '200 ms', max_attempts => 2));
	my ($confirmed, $failed) = split /\n/, $test->query(
		"SELECT outbox.send('$topic', 'm'::text) FROM generate_series(1, 2)");

	$test->wait_for(
		"SELECT count(*) FROM outbox.message WHERE topic = '$topic' AND status = 'DEAD'", 2);
	$kafka->produce($results,
		{ key => $confirmed, value => 'SUCCESS' },
		{ key => $failed, value => 'FAILED' });
	$test->counts_are($results, { applied => 2 }, 'DEAD messages');
	$test->state_is($confirmed, 'CONFIRMED|SUCCESS|', 'are confirmed');
	$test->state_is($failed, 'FAILED|FAILED|', 'and failed, without the reason of their death');
};

subtest 'garbage' => sub {
	my $start = time();
	my ($topic, $results) = $test->new_topics();
	my @ids = $test->messages($topic, 12);
	my $noise = join '', map { chr(($_ * 7919 + 13) % 256) } 1 .. 500;
	my $deep = 100_000;
	my @bad = (
		'', ' ', 'success', 'SUCCESSFUL', "SUCCESS\0", 'null', '17', '[]', '{}',
		'["SUCCESS"]', '{"status":"DONE"}', '{"status":null}', '{"status":["SUCCESS"]}',
		'{"status":"SUCCESS"', '{"status":"SUCCESS"}}', '{"status":"SUCCESS",}',
		'{"status":"SUCCESS","n":01}', '{"status":"SUCCESS","s":"\\x"}',
		"{\"status\":\"SUCCESS\",\"s\":\"\n\"}", '{"status":"SUCCESS","u":"\\u12"}',
		'"SUCCESS', '"\\ud83d"', '{\'status\':\'SUCCESS\'}',
		"{\"status\":\"FAILED\",\"error\":\"\xe9t\xe9\"}", "SUCCESS\xff", "\xc0\x80", "\xed\xa0\xbd",
		$noise, 'x' x 1_000_000, "\xff" x 900_000, '[' x $deep, '{"status":' x $deep,
		'{"status":"SUCCESS","x":' . '[' x $deep . ']' x $deep . '}', undef);

	$kafka->produce($results, map { { key => $ids[0], value => $_ } } @bad);
	$kafka->produce($results, map { { key => $_, value => 'SUCCESS' } }
		(undef, '', 'not an id', "$ids[0]x", substr($ids[0], 0, 35), $noise, "\0" x 36));
	$test->counts_are($results, { bad => @bad + 7 }, 'is counted');
	$test->state_is($ids[0], 'SENT||', 'and does nothing');

	my $log = slurp_file($node->logfile);
	my @complaints = $log =~ /(bad result in topic "$results".*)/g;
	cmp_ok(scalar(@complaints), '>=', 1, 'it is logged');
	cmp_ok(scalar(@complaints), '<=', 1 + (time() - $start) / 60, 'once a minute at most');
	like($complaints[0], qr/partition 0 at offset 0: /, 'with its place');

	# what looks odd and is no garbage
	my $long = 'e' x 20_000;
	my $nested = '{"status":"FAILED","error":' . '[' x 60 . ']' x 60 . '}';
	$kafka->produce($results,
		{ key => $ids[1], value => '{"status":"FAILED","error":"cut \\ud83d"}' },
		{ key => $ids[2], value => '{"status":"FAILED","error":"\\ud83d\\ude00 \\u0000 \\u00e9"}' },
		{ key => $ids[3], value => qq({"status":"FAILED","error":"$long"}) },
		{ key => $ids[4], value => '{"status":"FAILED","error":{"code": 7}}' },
		{ key => $ids[5], value => '{"status":"FAILED","error":null}' },
		{ key => $ids[6], value => '{"status":"SUCCESS","status":"FAILED"}' },
		{ key => $ids[7], value => '{"st\\u0061tus":"\\u0053UCCESS"}' },
		{ key => $ids[8], value => $nested },
		{ key => $ids[9], value => '{"status":"FAILED","error":"' . "\xc3\xa9" x 3 . '"}' },
		{ key => $ids[10], value => '{"x":{"status":"FAILED"},"status":"SUCCESS"}' },
		{ key => $ids[11], value => '{"status":"SUCCESS","pad":"' . ' ' x 900_000 . '"}' });
	$test->counts_are($results, { bad => @bad + 7, applied => 11 }, 'the rest is applied');
	$test->state_is($ids[1], qq(FAILED|{"status":"FAILED","error":"cut \\ud83d"}|cut \xef\xbf\xbd),
		'half a character');
	$test->state_is($ids[2],
		qq(FAILED|{"status":"FAILED","error":"\\ud83d\\ude00 \\u0000 \\u00e9"}|\xf0\x9f\x98\x80 \xef\xbf\xbd \xc3\xa9),
		'escapes');
	is( $test->query(
			"SELECT length(error), right(error, 26), length(result) FROM outbox.message WHERE id = '$ids[3]'"),
		'10264|ee... (20000 bytes in all)|10264',
		'a long error is cut');
	$test->state_is($ids[4], 'FAILED|{"status":"FAILED","error":{"code": 7}}|{"code": 7}',
		'an error that is no string');
	$test->state_is($ids[5], 'FAILED|{"status":"FAILED","error":null}|', 'an error that is null');
	$test->state_is($ids[6], 'FAILED|{"status":"SUCCESS","status":"FAILED"}|', 'the last of two fields');
	$test->state_is($ids[7], 'CONFIRMED|{"st\u0061tus":"\u0053UCCESS"}|', 'escapes where none are needed');
	$test->state_is($ids[8], "FAILED|$nested|" . '[' x 60 . ']' x 60, 'nested, but not too deeply');
	$test->state_is($ids[10], 'CONFIRMED|{"x":{"status":"FAILED"},"status":"SUCCESS"}|',
		'only the outer status counts');
	is( $test->query(
			"SELECT status, length(result) FROM outbox.message WHERE id = '$ids[11]'"),
		'CONFIRMED|10265', 'a long value is cut');
	is($test->query(
			q(SELECT restarts, bridge_restarts FROM outbox.worker WHERE kind = 'consumer')),
		'0|1', 'the consumer has not stopped');
};

subtest 'the result topic of its own topic' => sub {
	my ($topic, $results) = $test->new_topics();
	my ($other, $other_results) = $test->new_topics();
	my @ids = $test->messages($topic, 4);

	$kafka->produce($other_results, { key => $ids[0], value => 'SUCCESS' });
	$test->counts_are($other_results, { unknown => 1 }, 'one elsewhere does not count');
	$test->state_is($ids[0], 'SENT||', 'and does nothing');

	# it is changed: what was captured before may be answered on either
	my $new = $test->new_name('results');
	$kafka->create_topic($new, 1);
	$test->set_topic($topic, $new);
	$kafka->produce($new, { key => $ids[0], value => 'SUCCESS' });
	$test->counts_are($new, { applied => 1 }, 'on the new one');
	$kafka->produce($results, { key => $ids[1], value => 'SUCCESS' });
	$test->counts_are($results, { applied => 1 }, 'on the former one');

	my ($later) = $test->messages($topic, 1);
	$kafka->produce($results, { key => $later, value => 'FAILED' });
	$test->counts_are($results, { applied => 1, unknown => 1 },
		'the former one does not count for later messages');
	$test->state_is($later, 'SENT||', 'nor does anything');

	# and after a restart
	$node->restart;
	$kafka->produce($results, { key => $ids[2], value => 'SUCCESS' });
	$test->counts_are($results, { applied => 2, unknown => 1 }, 'after a restart, too');

	# and without any
	$test->set_topic($topic, undef);
	$kafka->produce($new, { key => $ids[3], value => 'SUCCESS' },
		{ key => $later, value => 'SUCCESS' });
	$test->counts_are($new, { applied => 3 }, 'with no result topic any more');
};

subtest 'in another encoding' => sub {
	my ($topic, $results) = map { "latin-$_" } qw(orders results);

	$kafka->create_topic($_, 1) foreach ($topic, $results);
	$test->query(
		q(CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0));
	$node->safe_psql('latin', 'CREATE EXTENSION outbox');
	my $id = $node->safe_psql('latin', "SELECT outbox.set_topic('$topic', '$results');
		SELECT outbox.send('$topic', 'm'::text)");
	$id =~ s/^\n//;
	$kafka->produce($results,
		{ key => $id, value => qq({"status":"FAILED","error":"caf\\u00e9 \\u20ac \xc3\xa9\xe2\x82\xac"}) });
	wait_for_value($node, 'latin',
		"SELECT status, encode(convert_to(error, 'LATIN1'), 'escape') FROM outbox.message",
		'FAILED|caf\351 ? \351?');
	$test->query('DROP DATABASE latin');
	pass('is shown as well as it can be');
};

$node->stop;
done_testing();
