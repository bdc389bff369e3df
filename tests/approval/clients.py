"""How mail programs write a reply: the shapes of their quotations, signatures and MIME, composed by hand.

Every function takes what the person typed and the notice that is answered,
and returns the body with its content type. Persons and companies are invented.
"""

from __future__ import annotations

import html
import textwrap
from collections.abc import Callable
from email.message import EmailMessage

from tests.approval.office import text_of

Shape = Callable[[str, EmailMessage], tuple[str, str]]

PLAIN = "text/plain; charset=utf-8"
FLOWED = "text/plain; charset=utf-8; format=flowed"
HTML = "text/html; charset=utf-8"
MIXED = 'multipart/alternative; boundary="=_b"'


def alternative(plain: str, rich: str) -> tuple[str, str]:
    body = (
        f"This is a multi-part message in MIME format.\n\n--=_b\nContent-Type: {PLAIN}\nContent-Transfer-Encoding: 8bit\n\n{plain}\n"
        f"--=_b\nContent-Type: {HTML}\nContent-Transfer-Encoding: 8bit\n\n{rich}\n--=_b--\n"
    )
    return body, MIXED


def marked(notice: EmailMessage, mark: str = "> ") -> str:
    return "\n".join((mark + line).rstrip() for line in text_of(notice).splitlines())


def paragraphs(text: str) -> str:
    return "".join(f"<div>{html.escape(line) or '<br>'}</div>" for line in text.splitlines())


def original_html(notice: EmailMessage) -> str:
    part = notice.get_body(("html",))
    assert part is not None
    content = str(part.get_content())
    return content[content.index("<body") :].replace("<body", "<div", 1).replace("</body>", "</div>").replace("</html>", "")


# --------------------------------------------------------------------------- Gmail


def gmail_web(typed: str, notice: EmailMessage) -> tuple[str, str]:
    lead = "On Mon, Nov 2, 2026 at 11:00 AM Postsale · Vasenhaus <shop@shop.example> wrote:"
    rich = (
        f'<div dir="ltr">{paragraphs(typed)}</div><br><div class="gmail_quote gmail_quote_container"><div dir="ltr" class="gmail_attr">{html.escape(lead)}'
        f'<br></div><blockquote class="gmail_quote" style="margin:0px 0px 0px 0.8ex">{original_html(notice)}</blockquote></div>'
    )
    return alternative(
        f"{typed}\n\nOn Mon, Nov 2, 2026 at 11:00 AM Postsale · Vasenhaus <\nshop@shop.example> wrote:\n\n{marked(notice)}\n>\n",
        rich,
    )


def gmail_web_zh(typed: str, notice: EmailMessage) -> tuple[str, str]:
    lead = "Postsale · Vasenhaus <shop@shop.example> 于2026年11月2日周一 18:00写道："
    rich = f'<div dir="ltr">{paragraphs(typed)}</div><br><div class="gmail_quote"><div dir="ltr" class="gmail_attr">{html.escape(lead)}<br></div><blockquote class="gmail_quote">{original_html(notice)}</blockquote></div>'
    return alternative(f"{typed}\n\n{lead}\n\n{marked(notice)}\n", rich)


def gmail_web_tw(typed: str, notice: EmailMessage) -> tuple[str, str]:
    lead = "Postsale · Vasenhaus <shop@shop.example> 於 2026年11月2日 週一 下午6:00寫道："
    return f"{typed}\n\n{lead}\n\n{marked(notice)}\n", PLAIN


def gmail_android(typed: str, notice: EmailMessage) -> tuple[str, str]:
    lead = "On Mon, 2 Nov 2026, 11:00 Postsale · Vasenhaus, <shop@shop.example> wrote:"
    rich = f'<div dir="auto">{paragraphs(typed)}</div><br><div class="gmail_quote"><div dir="ltr" class="gmail_attr">{html.escape(lead)}<br></div><blockquote class="gmail_quote">{original_html(notice)}</blockquote></div>'
    return alternative(f"{typed}\n\n{lead}\n\n{marked(notice)}\n", rich)


def gmail_html_only(typed: str, notice: EmailMessage) -> tuple[str, str]:
    lead = "On Mon, Nov 2, 2026 at 11:00 AM Postsale · Vasenhaus &lt;shop@shop.example&gt; wrote:"
    return (
        f'<div dir="ltr">{paragraphs(typed)}</div><br><div class="gmail_quote"><div dir="ltr" class="gmail_attr">{lead}<br></div><blockquote>{original_html(notice)}</blockquote></div>',
        HTML,
    )


# --------------------------------------------------------------------------- Outlook


def _outlook_block(labels: tuple[str, str, str, str], notice: EmailMessage, when: str) -> str:
    who, sent, to, subject = labels
    return f"{who}: Postsale · Vasenhaus <shop@shop.example>\n{sent}: {when}\n{to}: Anna Schmidt <anna.schmidt@staff.example>\n{subject}: {notice['Subject']}\n"


def outlook_desktop(typed: str, notice: EmailMessage) -> tuple[str, str]:
    block = _outlook_block(("From", "Sent", "To", "Subject"), notice, "Monday, November 2, 2026 11:00 AM")
    rich_block = "".join(
        f"<b>{line.partition(': ')[0]}:</b> {html.escape(line.partition(': ')[2])}<br>" for line in block.splitlines()
    )
    rich = (
        '<html xmlns:o="urn:schemas-microsoft-com:office:office"><head><style>p.MsoNormal{margin:0}</style></head><body lang="EN-US"><div class="WordSection1">'
        + "".join(f'<p class="MsoNormal">{html.escape(line) or "<o:p>&nbsp;</o:p>"}</p>' for line in typed.splitlines())
        + f'<p class="MsoNormal"><o:p>&nbsp;</o:p></p><div><div style="border:none;border-top:solid #E1E1E1 1.0pt;padding:3.0pt 0in 0in 0in"><p class="MsoNormal">{rich_block}</p></div></div>{original_html(notice)}</div></body></html>'
    )
    return alternative(f"{typed}\n\n{block}\n{text_of(notice)}\n", rich)


def outlook_desktop_rule(typed: str, notice: EmailMessage) -> tuple[str, str]:
    block = _outlook_block(("From", "Sent", "To", "Subject"), notice, "Monday, November 2, 2026 11:00 AM")
    return f"{typed}\n\n________________________________\n{block}\n{text_of(notice)}\n", PLAIN


def outlook_original(typed: str, notice: EmailMessage) -> tuple[str, str]:
    block = _outlook_block(("From", "Sent", "To", "Subject"), notice, "Monday, November 2, 2026 11:00 AM")
    return f"{typed}\n\n-----Original Message-----\n{block}\n{text_of(notice)}\n", PLAIN


def outlook_de(typed: str, notice: EmailMessage) -> tuple[str, str]:
    block = _outlook_block(("Von", "Gesendet", "An", "Betreff"), notice, "Montag, 2. November 2026 11:00")
    return f"{typed}\n\n{block}\n{text_of(notice)}\n", PLAIN


def outlook_zh(typed: str, notice: EmailMessage) -> tuple[str, str]:
    block = _outlook_block(("发件人", "发送时间", "收件人", "主题"), notice, "2026年11月2日 18:00")
    return f"{typed}\n\n{block}\n{text_of(notice)}\n", PLAIN


def outlook_tw(typed: str, notice: EmailMessage) -> tuple[str, str]:
    block = _outlook_block(("寄件者", "寄件日期", "收件者", "主旨"), notice, "2026年11月2日 下午 06:00")
    return f"{typed}\n\n{block}\n{text_of(notice)}\n", PLAIN


def outlook_html_only(typed: str, notice: EmailMessage) -> tuple[str, str]:
    block = "".join(
        f"<b>{line.partition(': ')[0]}:</b> {html.escape(line.partition(': ')[2])}<br>"
        for line in _outlook_block(("From", "Sent", "To", "Subject"), notice, "Monday, 2 November 2026 11:00").splitlines()
    )
    return (
        (
            f'<html><body><div style="font-family:Aptos">{paragraphs(typed)}</div><div id="appendonsend"></div><hr style="display:inline-block;width:98%" tabindex="-1">'
            f'<div id="divRplyFwdMsg" dir="ltr"><font face="Calibri">{block}</font><div>&nbsp;</div></div>{original_html(notice)}</body></html>'
        ),
        HTML,
    )


def outlook_ios(typed: str, notice: EmailMessage) -> tuple[str, str]:
    block = _outlook_block(("From", "Sent", "To", "Subject"), notice, "Monday, November 2, 2026 11:00:00 AM")
    return (
        f"{typed}\n\nGet Outlook for iOS<https://aka.ms/o0ukef>\n________________________________\n{block}\n{text_of(notice)}\n",
        PLAIN,
    )


# --------------------------------------------------------------------------- Apple


def apple_mail(typed: str, notice: EmailMessage) -> tuple[str, str]:
    return (
        f"{typed}\n\n> On 2. Nov 2026, at 11:00, Postsale · Vasenhaus <shop@shop.example> wrote:\n> \n{marked(notice)}\n",
        PLAIN,
    )


def apple_mail_html(typed: str, notice: EmailMessage) -> tuple[str, str]:
    rich = (
        f'<html><head></head><body style="overflow-wrap: break-word;">{paragraphs(typed)}<div><br><blockquote type="cite"><div>On 2. Nov 2026, at 11:00, Postsale · Vasenhaus '
        f'&lt;shop@shop.example&gt; wrote:</div><br class="Apple-interchange-newline"><div>{original_html(notice)}</div></blockquote></div><br></body></html>'
    )
    return alternative(
        f"{typed}\n\n> On 2. Nov 2026, at 11:00, Postsale · Vasenhaus <shop@shop.example> wrote:\n> \n{marked(notice)}\n", rich
    )


def iphone(typed: str, notice: EmailMessage) -> tuple[str, str]:
    return (
        f"{typed}\n\nSent from my iPhone\n\n> On 2 Nov 2026, at 11:00, Postsale · Vasenhaus <shop@shop.example> wrote:\n> \n> ﻿\n{marked(notice)}\n",
        PLAIN,
    )


def iphone_zh(typed: str, notice: EmailMessage) -> tuple[str, str]:
    return (
        f"{typed}\n\n发自我的iPhone\n\n> 在 2026年11月2日，18:00，Postsale · Vasenhaus <shop@shop.example> 写道：\n> \n> ﻿\n{marked(notice)}\n",
        PLAIN,
    )


def iphone_html_only(typed: str, notice: EmailMessage) -> tuple[str, str]:
    return (
        (
            f'<html><body dir="auto">{paragraphs(typed)}<div dir="ltr"><br>Von meinem iPhone gesendet</div><div dir="ltr"><br><blockquote type="cite">Am 02.11.2026 um 11:00 schrieb '
            f'Postsale · Vasenhaus &lt;shop@shop.example&gt;:<br><br></blockquote></div><blockquote type="cite"><div dir="ltr">{original_html(notice)}</div></blockquote></body></html>'
        ),
        HTML,
    )


# --------------------------------------------------------------------------- Chinese providers


def qq_web(typed: str, notice: EmailMessage) -> tuple[str, str]:
    head = (
        '------------------ 原始邮件 ------------------\n发件人: "Postsale · Vasenhaus"<shop@shop.example>;\n发送时间: 2026年11月2日(星期一) 晚上6:00\n'
        f'收件人: "李伟"<li.wei@staff.example>;\n主题: {notice["Subject"]}\n'
    )
    rich = (
        f"<div>{paragraphs(typed)}</div><div><br></div><div><includetail><!--<![endif]--></includetail></div>"
        '<div style="font-size: 12px;font-family: Arial Narrow;padding:2px 0 2px 0;">------------------&nbsp;原始邮件&nbsp;------------------</div>'
        '<div style="font-size: 12px;background:#efefef;padding:8px;"><div><b>发件人:</b> "Postsale · Vasenhaus" &lt;shop@shop.example&gt;;</div><div><b>发送时间:</b>&nbsp;2026年11月2日(星期一) 晚上6:00</div>'
        f'<div><b>收件人:</b>&nbsp;"李伟"&lt;li.wei@staff.example&gt;;</div><div><b>主题:</b>&nbsp;{html.escape(str(notice["Subject"]))}</div></div><div><br></div>{original_html(notice)}'
    )
    return alternative(f"{typed}\n\n\n{head}\n\n{text_of(notice)}\n", rich)


def qq_html_only(typed: str, notice: EmailMessage) -> tuple[str, str]:
    body, _ = qq_web(typed, notice)
    return body.partition("Content-Transfer-Encoding: 8bit\n\n")[2].partition("Content-Transfer-Encoding: 8bit\n\n")[
        2
    ].partition("\n--=_b--")[0], HTML


def qq_phone(typed: str, notice: EmailMessage) -> tuple[str, str]:
    return (
        (
            f"{typed}\n\n\n发自我的iPhone\n\n\n------------------ Original ------------------\nFrom: Postsale · Vasenhaus <shop@shop.example>\nDate: Mon,Nov 2,2026 6:00 PM\n"
            f"To: 李伟 <li.wei@staff.example>\nSubject: Re: {notice['Subject']}\n\n{text_of(notice)}\n"
        ),
        PLAIN,
    )


def netease_163(typed: str, notice: EmailMessage) -> tuple[str, str]:
    return (
        f'{typed}\n\n\n\n\n\n\n\n\n\n\n在 2026-11-02 18:00:00，"Postsale · Vasenhaus" <shop@shop.example> 写道：\n{marked(notice, ">")}\n',
        PLAIN,
    )


def netease_163_en(typed: str, notice: EmailMessage) -> tuple[str, str]:
    return (
        f'{typed}\n\n\n\n\n\n\nAt 2026-11-02 18:00:00, "Postsale · Vasenhaus" <shop@shop.example> wrote:\n\n{text_of(notice)}\n',
        PLAIN,
    )


def netease_master(typed: str, notice: EmailMessage) -> tuple[str, str]:
    return (
        f"{typed}\n\n\n| |\n李伟\n|\n|\n邮箱：li.wei@staff.example\n|\n\n签名由 网易邮箱大师 定制\n\n在2026年11月02日 18:00，Postsale · Vasenhaus<shop@shop.example> 写道：\n\n{marked(notice)}\n",
        PLAIN,
    )


def foxmail(typed: str, notice: EmailMessage) -> tuple[str, str]:
    block = f"发件人： Postsale · Vasenhaus\n发送时间： 2026-11-02 18:00\n收件人： li.wei\n主题： {notice['Subject']}\n"
    rich = (
        f'<html><body>{paragraphs(typed)}<div><br></div><hr style="width: 210px; height: 1px;" color="#b5c4df" size="1" align="left"><div><span>li.wei@staff.example</span></div>'
        f'<blockquote style="margin-Top: 0px;"><div>&nbsp;</div><div style="border:none;border-top:solid #B5C4DF 1.0pt;padding:3.0pt 0cm 0cm 0cm">'
        f"<div>{'</div><div>'.join(html.escape(line) for line in block.splitlines())}</div></div>{original_html(notice)}</blockquote></body></html>"
    )
    return alternative(f"{typed}\n\n\n\nli.wei@staff.example\n \n{block} \n{text_of(notice)}\n", rich)


def aliyun(typed: str, notice: EmailMessage) -> tuple[str, str]:
    return (
        (
            f"{typed}\n------------------------------------------------------------------\n发件人：Postsale · Vasenhaus <shop@shop.example>\n日　期：2026年11月02日 18:00:00\n"
            f"收件人：李伟<li.wei@staff.example>\n主　题：{notice['Subject']}\n\n{text_of(notice)}\n"
        ),
        PLAIN,
    )


def huawei(typed: str, notice: EmailMessage) -> tuple[str, str]:
    return (
        f"{typed}\n\n发自我的华为手机\n\n-------- 原始邮件 --------\n发件人： Postsale · Vasenhaus <shop@shop.example>\n日期： 2026年11月2日周一 18:00\n收件人： li.wei@staff.example\n主题： {notice['Subject']}\n\n{text_of(notice)}\n",
        PLAIN,
    )


# --------------------------------------------------------------------------- others


def thunderbird_top(typed: str, notice: EmailMessage) -> tuple[str, str]:
    return f"{typed}\n\nOn 02.11.26 11:00, Postsale · Vasenhaus wrote:\n{marked(notice)}\n", FLOWED


def thunderbird_bottom(typed: str, notice: EmailMessage) -> tuple[str, str]:
    return f"On 02.11.26 11:00, Postsale · Vasenhaus wrote:\n{marked(notice)}\n\n{typed}\n", FLOWED


def thunderbird_de_bottom(typed: str, notice: EmailMessage) -> tuple[str, str]:
    return f"Am 02.11.26 um 11:00 schrieb Postsale · Vasenhaus:\n{marked(notice)}\n\n{typed}\n", FLOWED


def yahoo(typed: str, notice: EmailMessage) -> tuple[str, str]:
    return (
        f"{typed}\n\n    On Monday, November 2, 2026 at 11:00:00 AM GMT+1, Postsale · Vasenhaus <shop@shop.example> wrote:  \n \n {text_of(notice)}\n",
        PLAIN,
    )


def samsung(typed: str, notice: EmailMessage) -> tuple[str, str]:
    return (
        (
            f"{typed}\n\n\nSent from my Galaxy\n\n\n-------- Original message --------\nFrom: Postsale · Vasenhaus <shop@shop.example>\nDate: 02/11/2026 11:00 (GMT+01:00)\n"
            f"To: Anna Schmidt <anna.schmidt@staff.example>\nSubject: {notice['Subject']}\n\n{text_of(notice)}\n"
        ),
        PLAIN,
    )


def proton(typed: str, notice: EmailMessage) -> tuple[str, str]:
    return (
        f"{typed}\n\nSent with Proton Mail secure email.\n\nOn Monday, November 2nd, 2026 at 11:00 AM, Postsale · Vasenhaus <shop@shop.example> wrote:\n\n{marked(notice)}\n",
        PLAIN,
    )


def roundcube(typed: str, notice: EmailMessage) -> tuple[str, str]:
    return f"{typed}\n\nOn 2026-11-02 11:00, Postsale · Vasenhaus wrote:\n{marked(notice)}\n", PLAIN


def mutt_bottom(typed: str, notice: EmailMessage) -> tuple[str, str]:
    return f"On Mon, Nov 02, 2026 at 11:00:00AM +0100, Postsale · Vasenhaus wrote:\n{marked(notice)}\n{typed}\n", PLAIN


def no_quote(typed: str, _notice: EmailMessage) -> tuple[str, str]:
    return f"{typed}\n", PLAIN


def wrapped_quote(typed: str, notice: EmailMessage) -> tuple[str, str]:
    lines = [w for line in text_of(notice).splitlines() for w in (textwrap.wrap(line, 70) or [""])]
    return f"{typed}\n\nOn Mon, 2 Nov 2026 11:00, Postsale · Vasenhaus <shop@shop.example> wrote:\n" + "\n".join(
        f"> {w}".rstrip() for w in lines
    ) + "\n", PLAIN


SHAPES: tuple[Shape, ...] = (
    gmail_web, gmail_web_zh, gmail_web_tw, gmail_android, gmail_html_only,
    outlook_desktop, outlook_desktop_rule, outlook_original, outlook_de, outlook_zh, outlook_tw, outlook_html_only, outlook_ios,
    apple_mail, apple_mail_html, iphone, iphone_zh, iphone_html_only,
    qq_web, qq_html_only, qq_phone, netease_163, netease_163_en, netease_master, foxmail, aliyun, huawei,
    thunderbird_top, thunderbird_bottom, thunderbird_de_bottom, yahoo, samsung, proton, roundcube, mutt_bottom, no_quote, wrapped_quote,
)  # fmt: skip
