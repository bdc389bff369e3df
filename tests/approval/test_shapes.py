"""Valid commands as real mail programs send them: at most two in a hundred may be missed, none misunderstood."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from daemon.vocab import CaseState
from tests.approval.clients import SHAPES, Shape
from tests.approval.office import Office, reply

ENGLISH_CARD = "Best regards,\n\nAnna Schmidt\nCustomer Care\nStaff GmbH | Hauptstr. 5 | 10115 Berlin\nTel: +49 30 1234567\nwww.staff.example"
CHINESE_CARD = "谢谢！\n\n李伟\n客服部 主管\n深圳市某某科技有限公司\n电话：0755-12345678"
DISCLAIMER = (
    "This e-mail and any attachments are confidential and intended solely for the use of the individual to whom\n"
    "they are addressed. If you are not the intended recipient, please delete this e-mail."
)
CHINESE_DISCLAIMER = (
    "本邮件及其附件含有保密信息，仅限于发送给上面地址中列出的个人或群组。如果您错收了本邮件，请您立即删除本邮件。"
)
NEW_TEXT = (
    "Sehr geehrte Frau Keller,\n\nwir senden Ihnen heute eine neue Vase. Die kaputte dürfen Sie behalten.\n\nIhr Vasenhaus"
)


@dataclass(frozen=True)
class Typed:
    """What a person types, who types it, and the state the case must reach."""

    name: str
    text: str
    state: CaseState
    who: str = "anna"


TYPED = (
    Typed("OK", "OK", CaseState.QUEUED),
    Typed("ok thanks, name", "Ok, thanks!\n\nAnna", CaseState.QUEUED),
    Typed("approve, card", f"Approve.\n\n{ENGLISH_CARD}", CaseState.QUEUED),
    Typed("OK, delimiter, disclaimer", f"OK\n\n-- \nAnna Schmidt\nStaff GmbH\n\n{DISCLAIMER}", CaseState.QUEUED),
    Typed("OK, disclaimer", f"ok\n\nAnna Schmidt\n\n{DISCLAIMER}", CaseState.QUEUED),
    Typed("同意, 名片", f"同意\n\n{CHINESE_CARD}", CaseState.QUEUED, "liwei"),
    Typed("批准, 声明", f"批准。\n\n李伟\n\n{CHINESE_DISCLAIMER}", CaseState.QUEUED, "liwei"),
    Typed("NO", "No, the amount is wrong\n\nAnna", CaseState.DECLINED),
    Typed("拒绝", "拒绝：金额不对\n\n李伟", CaseState.DECLINED, "liwei"),
    Typed("EDIT", f"EDIT\n{NEW_TEXT}", CaseState.QUEUED),
    Typed("修改", f"修改：\n\n{NEW_TEXT}", CaseState.QUEUED, "liwei"),
    Typed("LABEL", "LABEL complaint/product", CaseState.RECEIVED),
    Typed("TAKE", "我来", CaseState.HUMAN, "liwei"),
)


def _cases() -> list[tuple[Shape, Typed]]:
    return [(shape, typed) for shape in SHAPES for typed in TYPED]


@pytest.mark.timeout(600)
async def test_shapes_of_real_clients_are_understood(office: Office) -> None:
    missed: list[str] = []
    wrong: list[str] = []
    texts: list[str] = []
    for shape, typed in _cases():
        case_id = await office.draft_waits()
        await office.upkeep.ask(office.clock.now())
        notice = (await office.notices(case_id, to=typed.who))[0]
        body, content = shape(typed.text, notice)
        await office.arrive(reply(notice, body, who=typed.who, content=content))
        row = await office.case(case_id)
        name = f"{shape.__name__} / {typed.name}"
        if row.state == CaseState.AWAITING_APPROVAL.value:
            missed.append(name)
        elif row.state != typed.state.value:
            wrong.append(f"{name}: {row.state}")
        elif typed.text.endswith(NEW_TEXT):
            sent = (await office.buyer_replies(case_id))[0].mime.decode()
            if NEW_TEXT not in sent.replace("\r\n", "\n") or "Postsale" in sent or "iPhone" in sent or "li.wei" in sent:
                texts.append(name)
    total = len(_cases())
    print(f"approvals: {total} replies of {len(SHAPES)} client shapes, {len(missed)} missed, {len(wrong)} misunderstood")
    print(*missed, *texts, sep="\n")
    assert total >= 150
    assert wrong == []
    assert texts == []
    assert len(missed) <= 0.02 * total
